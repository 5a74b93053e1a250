"""The native kernels without Python (`native_harness.cpp`): under sanitizers, and on an emulated ARM processor."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.processes import run

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
NATIVE = HERE.parent.parent / "moe_local" / "kernels" / "native"
SOURCES = [
    *sorted(NATIVE.glob("processor*.cpp")),
    NATIVE / "layer.cpp",
    NATIVE / "team.cpp",
    HERE / "native_harness.cpp",
]
FLAGS = ["-std=c++17", "-ffp-contract=off", "-fno-strict-aliasing", "-pthread", f"-I{NATIVE}"]
SANITIZED = ["-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
MINUTES = 10 * 60.0


def _compile(compiler: str, to: Path, *options: str) -> Path:
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    done = run([compiler, *FLAGS, *options, *SOURCES, "-o", to], timeout=MINUTES)
    assert done.returncode == 0, done.stderr
    return to


def _digests(*command: object) -> dict[str, str]:
    """Processor -> digest, the same with one thread and with several."""
    done = run(command, timeout=MINUTES)
    assert done.returncode == 0 and not done.stderr, done.stderr
    lines = sorted({tuple(line.split()) for line in done.stdout.splitlines()})
    found = dict(lines)
    assert len(lines) == len(found), "threads change the numbers"
    return found


def _of_this_machine(tmp_path: Path) -> dict[str, str]:
    return _digests(_compile("g++", tmp_path / "here", "-O2"))


def test_sanitizers_find_nothing(tmp_path: Path) -> None:
    probe = tmp_path / "probe.cpp"
    probe.write_text("int main() {}")
    if shutil.which("g++") and run(["g++", *SANITIZED, probe, "-o", tmp_path / "probe"]).returncode:
        pytest.skip("g++ has no sanitizers here")
    found = _digests(_compile("g++", tmp_path / "sanitized", *SANITIZED))
    assert "portable" in found and len(set(found.values())) == 1, found


def test_arm_gives_the_same_bits(tmp_path: Path) -> None:
    """On emulated processors with dot products and without, where there are the portable kernels."""
    if shutil.which("qemu-aarch64") is None:
        pytest.skip("qemu-aarch64 is not installed")
    program = _compile("aarch64-linux-gnu-g++", tmp_path / "arm", "-O2")
    emulated = ["qemu-aarch64", "-L", "/usr/aarch64-linux-gnu", "-cpu"]
    arm = _digests(*emulated, "max", program)
    assert set(arm) == {"neon", "portable"}
    assert set(_digests(*emulated, "cortex-a57", program)) == {"portable"}
    found = arm | {f"{name} here": digest for name, digest in _of_this_machine(tmp_path).items()}
    assert len(set(found.values())) == 1, found
