"""From a model's name to a store of it: `moe-local pack`, and what `chat` does on first use."""

from __future__ import annotations

from pathlib import Path

from moe_local.checkpoint.files import Checkpoint
from moe_local.checkpoint.hub import locate
from moe_local.checkpoint.schemes import Packed, packed_on_first_use
from moe_local.errors import MoeLocalError
from moe_local.formats.registry import dense_names, packed_encoding
from moe_local.store import Packing, cached_store, is_store, pack
from moe_local.store.job import Job, plan_packing
from moe_local.store.open import ModelFiles, open_checkpoint, open_model
from moe_local.store.packer import Report
from moe_local.store.store_index import find_store

AUTO = "auto"
DENSE = ("keep", *dense_names())  # embeddings are int8 in all of these
_ROUNDING = 0.004  # relative: what is lost when scales become bf16


def choose(experts: str = AUTO, group: int = 64, dense: str = "int8") -> Packing:
    """A packing by the names that users type.

    `experts` "auto" is int4, or for a quantised model the nearest format; `dense` "keep" leaves dense weights alone.
    """
    near = experts == AUTO
    if dense not in DENSE:
        raise MoeLocalError(f"there is no dense format {dense!r}", remedy=f"use {', '.join(DENSE)}")
    kept = None if dense == "keep" else packed_encoding(dense, group)
    return Packing(packed_encoding("int4" if near else experts, group), kept, near)


def plan(model: str | Path, packing: Packing) -> Job:
    """What packing a checkpoint will make. Raises MoeLocalError for a store: its originals are gone."""
    directory = locate(str(model))
    if is_store(directory):
        raise MoeLocalError(f"{model} is a store already", remedy="pack the checkpoint that it was made from")
    return plan_packing(open_model(directory), packing)


def ensure_packed(
    model: str | Path, report: Report, format: str = AUTO, dtype: str = AUTO
) -> tuple[ModelFiles, bool]:
    """The files to run a model from, and whether they were packed now: a store in the cache folder, made if need be.

    With "auto" a store is run as it is, and so is a checkpoint that is quantised in a format that packing would not
    make faster, or not without loss. `dtype` is what the files are to compute in, see `open_model`.
    Raises StorageError where there is no room for the store.
    """
    directory = locate(str(model))
    if is_store(directory):
        if format != AUTO:
            raise MoeLocalError(f"{model} is a store already", remedy="give the checkpoint that it was made from")
        return open_model(directory, dtype), False
    checkpoint = Checkpoint.open(directory)
    store, made = _store_of(checkpoint, report, format)
    return (open_checkpoint(checkpoint, dtype) if store is None else open_model(store, dtype)), made


def _store_of(checkpoint: Checkpoint, report: Report, format: str) -> tuple[Path | None, bool]:
    """The store to run a checkpoint from, made if need be, and whether it was; None where it is run as it is.

    A store that is there is found without understanding the checkpoint.
    """
    packed = packed_on_first_use(checkpoint) if format == AUTO else Packed.ALWAYS
    if packed is Packed.NEVER:
        return None, False
    must_be_exact = packed is Packed.IF_EXACT
    packing = choose(format)
    if (found := find_store(checkpoint, packing)) is not None:
        return None if must_be_exact and found.error > _ROUNDING else found.directory, False
    job = plan_packing(open_checkpoint(checkpoint), packing)
    if must_be_exact and job.error > _ROUNDING:
        return None, False
    target = cached_store(job)
    there = is_store(target)
    return pack(job, target, report), not there
