"""Which store of the cache folder is of a checkpoint, and where one belongs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from moe_local.checkpoint.files import Checkpoint
from moe_local.checkpoint.names import named_by
from moe_local.errors import CheckpointError
from moe_local.store.body import MANIFEST
from moe_local.store.job import Job, Packing, fingerprint
from moe_local.store.manifest import Manifest
from moe_local.store.store_index import folder

_DIGITS = 8  # of a fingerprint, at the end of a store's name


@dataclass(frozen=True)
class FoundStore:
    """A store of a checkpoint, whole as far as its manifest says, and what packing it cost: see `relative_error`."""

    directory: Path
    error: float
    formats: str


def cached_store(job: Job) -> Path:
    """Where the store of this packing belongs in the cache folder."""
    name = named_by(job.checkpoint.directory.resolve()).rpartition("/")[2][:80]
    formats = f"{job.expert_formats}-dense-{job.dense_formats}".replace(" and ", "-").replace(" ", "-")
    return folder() / f"{name}-{formats}-{job.identity['fingerprint'][:_DIGITS]}"


def find_store(checkpoint: Checkpoint, packing: Packing) -> FoundStore | None:
    """The store of the cache folder that was packed from these very files when this packing was asked for.

    None where there is no such store, or only one that is damaged or does not say what was asked for: what packing
    would make, and so `cached_store`, is known once the checkpoint is understood.
    """
    asked = packing.asked_of(checkpoint)
    return next((found for words, found in _stores_of(checkpoint) if words == asked), None)


def find_other_store(checkpoint: Checkpoint) -> FoundStore | None:
    """The newest store of these very files, whatever packing was asked for; None where there is none."""
    found = [store for _, store in _stores_of(checkpoint)]
    return max(found, key=lambda store: (store.directory / MANIFEST).stat().st_mtime, default=None)


def _stores_of(checkpoint: Checkpoint) -> Iterator[tuple[str, FoundStore]]:
    """What was asked for, and the store, for each that was packed from these very files."""
    digest = fingerprint(checkpoint)
    for directory in sorted(folder().glob(f"*-{digest[:_DIGITS]}")):
        try:
            manifest = Manifest.read(directory)
            source, formats = manifest.source, manifest.formats
            if source["fingerprint"] == digest:
                told = f"{formats['experts']}, dense {formats['dense']}"
                yield source["asked"], FoundStore(directory, float(source["error"]), told)
        except (CheckpointError, OSError, KeyError, ValueError):
            continue
