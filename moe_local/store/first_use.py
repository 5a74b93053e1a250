"""From a model's name to a store of it: `moe-local pack`, and what `chat` does on first use."""

from __future__ import annotations

from enum import Enum, auto
from pathlib import Path

from moe_local.checkpoint.files import Checkpoint
from moe_local.checkpoint.hub import locate
from moe_local.checkpoint.schemes import Packed, packed_on_first_use
from moe_local.errors import MoeLocalError
from moe_local.formats.registry import dense_names, packed_encoding
from moe_local.registry import choice
from moe_local.store.body import is_store
from moe_local.store.finding import cached_store, find_other_store, find_store
from moe_local.store.job import Job, Packing, plan_packing
from moe_local.store.open import ModelFiles, open_checkpoint, open_model
from moe_local.store.packer import pack
from moe_local.store.shards import Report

AUTO = "auto"
DENSE = ("keep", *dense_names())  # embeddings are int8 in all of these
_ROUNDING = 0.004  # relative: what is lost when scales become bf16


class Taken(Enum):
    """Which files a model is run from."""

    AS_IT_IS = auto()  # a store that was named, or a checkpoint that packing would not make faster
    STORE = auto()  # its store in the cache folder
    OTHER_STORE = auto()  # the newest that was packed from it with other settings
    PACKED = auto()  # a store that was made now


def choose(experts: str = AUTO, group: int = 64, dense: str = "int8") -> Packing:
    """A packing by the names that users type.

    `experts` "auto" is int4, or for a quantised model the nearest format; `dense` "keep" leaves dense weights alone.
    """
    near = experts == AUTO
    if dense not in DENSE:
        raise MoeLocalError(f"there is no dense format {dense!r}", remedy=choice(dense, DENSE))
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
) -> tuple[ModelFiles, Taken]:
    """The files to run a model from, and which they are: a store in the cache folder, made if need be.

    With "auto" a store is run as it is, and so is a checkpoint that is quantised in a format that packing would not
    make faster, or not without loss; another store of the same files spares packing them again. `dtype` is what the
    files are to compute in, see `open_model`. Raises StorageError where there is no room for the store.
    """
    directory = locate(str(model))
    if is_store(directory):
        if format != AUTO:
            raise MoeLocalError(f"{model} is a store already", remedy="give the checkpoint that it was made from")
        return open_model(directory, dtype), Taken.AS_IT_IS
    checkpoint = Checkpoint.open(directory)
    store, taken = _store_of(checkpoint, report, format)
    return (open_checkpoint(checkpoint, dtype) if store is None else open_model(store, dtype)), taken


def _store_of(checkpoint: Checkpoint, report: Report, format: str) -> tuple[Path | None, Taken]:
    """The store to run a checkpoint from, made if need be; None where it is run as it is.

    A store that is there is found without understanding the checkpoint.
    """
    packed = packed_on_first_use(checkpoint) if format == AUTO else Packed.ALWAYS
    if packed is Packed.NEVER:
        return None, Taken.AS_IT_IS
    must_be_exact = packed is Packed.IF_EXACT
    packing = choose(format)
    if (found := find_store(checkpoint, packing)) is not None:
        lossy = must_be_exact and found.error > _ROUNDING
        return (None, Taken.AS_IT_IS) if lossy else (found.directory, Taken.STORE)
    if format == AUTO and not must_be_exact and (other := find_other_store(checkpoint)) is not None:
        return other.directory, Taken.OTHER_STORE
    job = plan_packing(open_checkpoint(checkpoint), packing)
    if must_be_exact and job.error > _ROUNDING:
        return None, Taken.AS_IT_IS
    target = cached_store(job)
    there = is_store(target)
    return pack(job, target, report), Taken.STORE if there else Taken.PACKED
