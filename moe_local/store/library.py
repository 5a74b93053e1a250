"""The stores in the cache folder: where one of a checkpoint belongs, and which there are."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from moe_local.config import home
from moe_local.errors import MoeLocalError
from moe_local.store.job import Job, fingerprint
from moe_local.store.manifest import Manifest, is_store


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
    return home() / "stores"


def cached_store(job: Job) -> Path:
    """Where the store of this packing belongs in the cache folder."""
    formats = job.expert_formats.replace(" and ", "-")
    parts = [job.checkpoint.directory.resolve().name, formats, fingerprint(job.checkpoint)[:8]]
    if job.packing.dense is not None:
        parts.insert(2, f"dense-{job.packing.dense}")
    return folder() / "-".join(parts)


def stores() -> list[Stored]:
    """Those in the cache folder, by name; unfinished ones too."""
    return sorted(_found(), key=lambda stored: stored.name)


def _found() -> Iterator[Stored]:
    if not folder().is_dir():
        return
    for directory in folder().iterdir():
        if not directory.is_dir():
            continue
        size = sum(file.stat().st_size for file in directory.iterdir() if file.is_file())
        if is_store(directory):
            manifest = Manifest.read(directory)
            formats = f"{manifest.formats['experts']}, dense {manifest.formats['dense']}"
            yield Stored(directory.name, directory, size, str(manifest.source["name"]), formats)
        else:
            yield Stored(directory.name, directory, size, "", "")


def remove(name: str) -> Stored:
    """Deletes a store of the cache folder. Raises MoeLocalError if there is none of this name."""
    found = next((stored for stored in stores() if stored.name == name), None)
    if found is None:
        raise MoeLocalError(f"there is no store {name!r}", remedy="`moe-local stores` lists them")
    shutil.rmtree(found.directory)
    Path(f"{found.directory}.lock").unlink(missing_ok=True)
    return found
