"""From a model's name to a store of it: `moe-local pack`, and what `chat` does on first use."""

from __future__ import annotations

from pathlib import Path

from moe_local.checkpoint.schemes import method
from moe_local.errors import MoeLocalError
from moe_local.formats import packed_encoding
from moe_local.planning import Understood, understand
from moe_local.store import Packing, cached_store, is_store, pack
from moe_local.store.packer import Job, Report, plan_packing

DEFAULT = ("int4", 64, "int8")  # experts, group, dense


def choose(experts: str, group: int = 64, dense: str | None = None) -> Packing:
    """A packing by the names that users type; `dense` None or "keep" leaves the dense weights as they are."""
    kept = dense is None or dense == "keep"
    return Packing(packed_encoding(experts, group), None if kept or dense is None else packed_encoding(dense, group))


def plan(model: str | Path, packing: Packing) -> Job:
    """What packing a checkpoint will make. Raises MoeLocalError for a store: its originals are gone."""
    found = understand(model)
    if is_store(found.checkpoint.directory):
        raise MoeLocalError(f"{model} is a store already", remedy="pack the checkpoint that it was made from")
    return _job(found, packing)


def _job(found: Understood, packing: Packing) -> Job:
    return plan_packing(found.checkpoint, found.catalog, found.skeleton, packing, found.dtype)


def ensure_packed(model: str | Path, report: Report) -> tuple[Path, bool]:
    """The store of an unquantised checkpoint in the cache folder, made if need be, and whether it was made now.

    A store, or a checkpoint that is quantised already, is given back as it is.
    """
    found = understand(model)
    directory = found.checkpoint.directory
    if is_store(directory) or method(found.checkpoint) is not None:
        return directory, False
    job = _job(found, choose(*DEFAULT))
    target = cached_store(job)
    there = is_store(target)
    return pack(job, target, report), not there
