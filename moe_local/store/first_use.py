"""From a model's name to a store of it: `moe-local pack`, and what `chat` does on first use."""

from __future__ import annotations

from pathlib import Path

from moe_local.checkpoint.schemes import method
from moe_local.errors import MoeLocalError
from moe_local.formats.registry import dense_names, packed_encoding
from moe_local.store import Packing, cached_store, is_store, pack
from moe_local.store.job import Job, plan_packing, relative_error
from moe_local.store.open import ModelFiles, open_model
from moe_local.store.packer import Report

AUTO = "auto"
DENSE = ("keep", *dense_names())  # embeddings are int8 in all of these
_ROUNDING = 0.004  # relative: what is lost when scales become bf16
_EXACT_OR_NOT = (
    "gptq",
    "awq",
    "auto-round",
    "compressed-tensors",
    "mlx",
    "modelopt",
)  # their numbers are kept, or the checkpoint is read as it is
_WORTH_IT = (None, "gguf", *_EXACT_OR_NOT)  # schemes that run faster once they are packed


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
    found = open_model(model)
    if is_store(found.checkpoint.directory):
        raise MoeLocalError(f"{model} is a store already", remedy="pack the checkpoint that it was made from")
    return _job(found, packing)


def _job(found: ModelFiles, packing: Packing) -> Job:
    return plan_packing(found.checkpoint, found.catalog, found.skeleton, packing, found.dtype)


def ensure_packed(model: str | Path, report: Report, format: str = AUTO) -> tuple[Path, bool]:
    """The store of a checkpoint in the cache folder, made if need be, and whether it was made now.

    With "auto" a store, or a checkpoint that is quantised in a format that is run as it is, is given back.
    """
    found = open_model(model)
    directory = found.checkpoint.directory
    if is_store(directory) and format != AUTO:
        raise MoeLocalError(f"{model} is a store already", remedy="give the checkpoint that it was made from")
    if is_store(directory) or (format == AUTO and method(found.checkpoint) not in _WORTH_IT):
        return directory, False
    job = _job(found, choose(format))
    exact = format == AUTO and method(found.checkpoint) in _EXACT_OR_NOT
    if exact and relative_error(job) > _ROUNDING:
        return directory, False
    target = cached_store(job)
    there = is_store(target)
    return pack(job, target, report), not there
