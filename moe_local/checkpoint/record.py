"""A record is the bytes of one expert; its layout says how they read as matrices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from moe_local.checkpoint.header import TensorEntry
from moe_local.checkpoint.tracing import Block, Traced, UntraceableError

ALIGNMENT = 64  # bytes: a cache line, and enough for every vector load


@dataclass(frozen=True, slots=True)
class Extent:
    """`length` bytes of a file from `offset`, that belong at `position` of a record."""

    file: Path
    offset: int
    length: int
    position: int


@dataclass(frozen=True, slots=True)
class Field:
    """One matrix [out, in] or vector [out] inside a record.

    Its elements are at `strides` (in elements) from byte `position`. Where the file's rows are in another order
    than the model's, `order[i]` is the row of the view that the model calls row `i`.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    position: int
    order: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Layout:
    """The fields of a record by parameter name (`gate_up_proj`, `down_proj_bias` ...) and its size in bytes."""

    fields: Mapping[str, Field]
    size: int

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights; biases may have another."""
        return next(iter(self.fields.values())).dtype


def aligned(size: int, to: int = ALIGNMENT) -> int:
    return -(-size // to) * to


def place_record(
    parameters: Mapping[str, Traced], entries: Mapping[str, TensorEntry]
) -> tuple[Layout, tuple[Extent, ...]]:
    """Lays one expert's parameters out in a record, in the order given, each as the file holds it.

    `parameters` are traced tensors of shape [out, in] or [out]. Raises UntraceableError when a parameter is not
    made of contiguous runs of the files that together read as one evenly strided matrix.
    """
    fields: dict[str, Field] = {}
    extents: list[Extent] = []
    position = 0
    for name, traced in parameters.items():
        field, runs = _place_field(traced, entries, position)
        fields[name] = field
        extents.extend(runs)
        position = aligned(max(run.position + run.length for run in runs))
    return Layout(fields, position), tuple(extents)


def _place_field(traced: Traced, entries: Mapping[str, TensorEntry], position: int) -> tuple[Field, list[Extent]]:
    dtype = _common_dtype(traced, entries)
    base: dict[str, int] = {}  # source -> the place of its element 0, in elements from `position`
    runs, used = [], 0
    for source, (low, high) in _regions(traced.blocks).items():
        entry = entries[source]
        base[source] = used - low
        at = position + used * dtype.itemsize
        runs.append(Extent(entry.file, entry.offset + low * dtype.itemsize, (high - low) * dtype.itemsize, at))
        used += high - low
    first, strides, order = _affine(traced, base)
    if order is not None and traced.ndim == 1:
        raise UntraceableError("a bias in another order than the model's")
    return Field(dtype, tuple(traced.shape), strides, position + first * dtype.itemsize, order), runs


def _common_dtype(traced: Traced, entries: Mapping[str, TensorEntry]) -> torch.dtype:
    dtypes = {entries[block.source].dtype for block in traced.blocks}
    if len(dtypes) != 1:
        raise UntraceableError(f"parts of types {sorted(map(str, dtypes))}")
    return dtypes.pop()


def _regions(blocks: Sequence[Block]) -> dict[str, tuple[int, int]]:
    """Element ranges of each source in the order of first use; each must be covered without gaps."""
    spans: dict[str, tuple[int, int]] = {}
    covered: dict[str, int] = {}
    for block in sorted(blocks, key=lambda block: tuple(axis.start for axis in block.axes)):
        last = block.offset + sum((axis.count - 1) * axis.stride for axis in block.axes)
        low, high = spans.get(block.source, (block.offset, 0))
        spans[block.source] = (min(low, block.offset), max(high, last + 1))
        covered[block.source] = covered.get(block.source, 0) + block.numel
    for source, (low, high) in spans.items():
        if covered[source] != high - low:
            raise UntraceableError(f"an expert's part of {source!r} is not contiguous")
    return spans


def _affine(traced: Traced, base: Mapping[str, int]) -> tuple[int, tuple[int, ...], tuple[int, ...] | None]:
    """(first element, strides, row order) of a traced matrix or vector, given where each source begins."""
    rows = np.full(traced.shape[0], -1, dtype=np.int64)  # [out] place of each row's first element
    columns = set()
    for block in traced.blocks:
        row, *rest = block.axes
        if any(axis.start or axis.step != 1 for axis in rest) or [a.count for a in rest] != list(traced.shape[1:]):
            raise UntraceableError("a row in several parts")
        columns.add(tuple(axis.stride for axis in rest))
        places = base[block.source] + block.offset + row.stride * np.arange(row.count)
        rows[row.start : row.start + row.count * row.step : row.step] = places
    if len(columns) != 1 or (rows < 0).any():
        raise UntraceableError("rows of unequal strides")
    ranked = np.sort(rows)
    steps = np.diff(ranked)
    pitch = int(steps[0]) if len(steps) else math.prod(traced.shape[1:])
    if (steps != pitch).any():
        raise UntraceableError("rows at uneven distances")
    strides = (pitch, *columns.pop())
    if (ranked == rows).all():
        return int(ranked[0]), strides, None
    return int(ranked[0]), strides, tuple(((rows - ranked[0]) // pitch).tolist())
