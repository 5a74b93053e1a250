"""The stores in the cache folder: where one of a checkpoint belongs, and which there are."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from moe_local.checkpoint.files import Checkpoint
from moe_local.errors import CheckpointError, MoeLocalError, StorageError
from moe_local.paths import cache_dir
from moe_local.store.job import Job, Packing, fingerprint
from moe_local.store.manifest import Manifest, is_store
from moe_local.store.progress import is_unfinished

_DIGITS = 8  # of a fingerprint, at the end of a store's name


@dataclass(frozen=True)
class Stored:
    """One store of the cache folder; `source` and `formats` are empty while it is not whole."""

    name: str
    directory: Path
    size: int  # bytes
    source: str
    formats: str

    @property
    def whole(self) -> bool:
        return bool(self.formats)


def folder() -> Path:
    return cache_dir() / "stores"


def cached_store(job: Job) -> Path:
    """Where the store of this packing belongs in the cache folder."""
    name = job.checkpoint.directory.resolve().name[:80]
    formats = f"{job.expert_formats}-dense-{job.dense_formats}".replace(" and ", "-").replace(" ", "-")
    return folder() / f"{name}-{formats}-{job.identity['fingerprint'][:_DIGITS]}"


@dataclass(frozen=True)
class FoundStore:
    """A store of a checkpoint, whole as far as its manifest says, and what packing it cost: see `relative_error`."""

    directory: Path
    error: float


def find_store(checkpoint: Checkpoint, packing: Packing) -> FoundStore | None:
    """The store of the cache folder that was packed from these very files when this packing was asked for.

    None where there is no such store, or only one that is damaged or does not say what was asked for: what packing
    would make, and so `cached_store`, is known once the checkpoint is understood.
    """
    digest, asked = fingerprint(checkpoint), packing.asked_of(checkpoint)
    for directory in sorted(folder().glob(f"*-{digest[:_DIGITS]}")):
        try:
            source = Manifest.read(directory).source
            if (source["fingerprint"], source["asked"]) == (digest, asked):
                return FoundStore(directory, float(source["error"]))
        except (CheckpointError, OSError, KeyError, ValueError):
            continue
    return None


def stores() -> list[Stored]:
    """Those in the cache folder, by name; unfinished ones too."""
    return sorted(_found(), key=lambda stored: stored.name)


def _found() -> Iterator[Stored]:
    if not folder().is_dir():
        return
    for directory in folder().iterdir():
        try:
            if not directory.is_dir() or not (is_store(directory) or is_unfinished(directory)):
                continue
        except OSError as error:  # of somebody else, perhaps
            yield Stored(directory.name, directory, 0, "", f"cannot be read ({error.strerror})")
            continue
        source, formats = _described(directory) if is_store(directory) else ("", "")
        yield Stored(directory.name, directory, _size(directory), source, formats)


def _size(directory: Path) -> int:
    """Bytes of its files, as far as they can be seen."""
    try:
        return sum(file.stat().st_size for file in directory.iterdir() if file.is_file())
    except OSError:
        return 0


def _described(directory: Path) -> tuple[str, str]:
    """Source and formats of a store; what is wrong with it in their place."""
    try:
        manifest = Manifest.read(directory)
    except CheckpointError as error:
        return "", f"damaged: remove it ({error.message})"
    return manifest.source["name"], f"{manifest.formats['experts']}, dense {manifest.formats['dense']}"


def remove(name: str) -> Stored:
    """Deletes a store of the cache folder. Raises MoeLocalError if there is none of this name."""
    found = next((stored for stored in stores() if stored.name == name), None)
    if found is None:
        raise MoeLocalError(f"there is no store {name!r}", remedy="`moe-local stores` lists them")
    try:
        if found.directory.is_symlink():
            found.directory.unlink()
        else:
            shutil.rmtree(found.directory)
    except OSError as error:
        raise StorageError(f"cannot remove {found.directory} ({error})", remedy="check its permissions") from error
    return found
