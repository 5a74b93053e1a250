"""A record is the bytes of one expert; its layout says how they read as matrices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from moe_local.checkpoint.encoding import Encoding
from moe_local.checkpoint.header import TensorEntry
from moe_local.checkpoint.tracing import Axis, Block, Traced, UntraceableError, row_major

ALIGNMENT = 64  # bytes: a cache line, and enough for every vector load


@dataclass(frozen=True, slots=True)
class Extent:
    """`length` bytes of a file from `offset`, that belong at `position` of a record."""

    file: Path
    offset: int
    length: int
    position: int


PLAIN = {torch.bfloat16: Encoding("bf16"), torch.float16: Encoding("fp16"), torch.float32: Encoding("fp32")}


@dataclass(frozen=True, slots=True)
class Array:
    """One array inside a record: elements at `strides` (in elements) from byte `position`."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    position: int


@dataclass(frozen=True, slots=True)
class Matrix:
    """A matrix of `shape` [out, in], encoded in one or more arrays."""

    encoding: Encoding
    shape: tuple[int, int]
    arrays: Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class Projection:
    """Matrices whose outputs follow each other; then, where the model has another order, `order[i]` is the output
    that it calls `i`; then the bias [out], of whose numbers `bias_order[i]` is the one for the model's `i`.
    """

    matrices: tuple[Matrix, ...]
    order: tuple[int, ...] | None = None
    bias: Array | None = None
    bias_order: tuple[int, ...] | None = None  # None: the model's

    @property
    def shape(self) -> tuple[int, int]:
        return sum(matrix.shape[0] for matrix in self.matrices), self.matrices[0].shape[1]


@dataclass(frozen=True, slots=True)
class Layout:
    """The projections of a record by parameter name (`gate_up_proj`, `down_proj` ...) and its size in bytes."""

    projections: Mapping[str, Projection]
    size: int

    @property
    def encodings(self) -> list[Encoding]:
        """Those in use, each once."""
        found = [matrix.encoding for projection in self.projections.values() for matrix in projection.matrices]
        return list(dict.fromkeys(found))


@dataclass(frozen=True, slots=True)
class EncodedTensor:
    """A matrix, or one an expert stacked, that a quantised checkpoint holds in several tensors.

    `shape` is [out, in] or [experts, out, in]; `parts` are the arrays of the encoding, with the same leading axis, or
    without one where all experts share an array.
    `name` is what the unquantised checkpoint calls it; it has the last two axes swapped there if `transposed`.
    """

    name: str
    shape: tuple[int, ...]
    encoding: Encoding
    parts: Mapping[str, TensorEntry]
    transposed: bool = False
    beside: tuple[str, ...] = ()  # tensors that belong to it and are not needed to read it

    @property
    def length(self) -> int:
        return sum(part.length for part in self.parts.values())

    def is_stacked(self, name: str) -> bool:
        """Whether a part has an array for each expert."""
        return len(self.shape) == 3 and self.parts[name].shape[:1] == self.shape[:1]


Source = TensorEntry | EncodedTensor


def trace(source: Source) -> Traced:
    """The tensor as the unquantised checkpoint would hold it."""
    traced = Traced.source(source.name, source.shape)
    return traced.transpose(-1, -2) if isinstance(source, EncodedTensor) and source.transposed else traced


def aligned(size: int, to: int = ALIGNMENT) -> int:
    return -(-size // to) * to


def place_record(
    parameters: Mapping[str, Traced], sources: Mapping[str, Source]
) -> tuple[Layout, tuple[Extent, ...]]:
    """Lays one expert's parameters out in a record, in the order given, each as the files hold it.

    `parameters` are traced tensors of shape [out, in], or [out] for the bias of `NAME_bias`. Raises UntraceableError
    when a parameter is not made of contiguous runs of the files that together read as one evenly strided matrix, or
    of whole encoded matrices.
    """
    matrices: dict[str, tuple[tuple[Matrix, ...], tuple[int, ...] | None]] = {}
    biases: dict[str, tuple[Array, tuple[int, ...] | None]] = {}
    extents: list[Extent] = []
    position = 0
    for name, traced in parameters.items():
        if any(isinstance(sources[block.source], EncodedTensor) for block in traced.blocks):
            placed, order, runs = _place_encoded(traced, sources, position)
            matrices[name] = (placed, order)
        else:
            entries = {block.source: _plain(sources[block.source]) for block in traced.blocks}
            array, order, runs = _place_plain(traced, entries, position)
            if name.endswith("_bias"):
                biases[name.removesuffix("_bias")] = (array, order)
            else:
                encoding = PLAIN.get(array.dtype, Encoding(str(array.dtype).removeprefix("torch.")))
                shape = (array.shape[0], array.shape[1])
                matrices[name] = ((Matrix(encoding, shape, {"weight": array}),), order)
        extents.extend(runs)
        position = aligned(max(run.position + run.length for run in runs))
    if stray := biases.keys() - matrices.keys():
        raise UntraceableError(f"biases without a matrix: {sorted(stray)}")
    none = (None, None)
    projections = {name: Projection(*placed, *biases.get(name, none)) for name, placed in matrices.items()}
    return Layout(projections, position), tuple(extents)


def _plain(source: Source) -> TensorEntry:
    assert isinstance(source, TensorEntry)
    return source


def _encoded(source: Source) -> EncodedTensor:
    """A plain matrix beside encoded ones, which quantisers leave where it costs too much, as one of them."""
    if isinstance(source, EncodedTensor):
        return source
    if source.dtype not in PLAIN or len(source.shape) not in (2, 3):
        raise UntraceableError("a parameter that is quantised in part")
    return EncodedTensor(source.name, source.shape, PLAIN[source.dtype], {"weight": source})


def _place_encoded(
    traced: Traced, sources: Mapping[str, Source], position: int
) -> tuple[tuple[Matrix, ...], tuple[int, ...] | None, list[Extent]]:
    matrices, runs = [], []
    rows = np.full(traced.shape[0], -1, dtype=np.int64)  # where the matrices' outputs have each row
    done = 0
    for block in sorted(traced.blocks, key=lambda block: block.axes[0].start):
        source = _encoded(sources[block.source])
        out, width = source.shape[-2:]
        expert, within = divmod(block.offset, out * width)
        row, column = block.axes
        if within or (row.count, row.stride) != (out, width) or column != Axis(0, width, 1):
            raise UntraceableError(f"part of the encoded matrix {source.name!r}")
        rows[row.start : row.start + out * row.step : row.step] = done + np.arange(out)
        done += out
        matrix, found = _place_parts(source, expert, position)
        matrices.append(matrix)
        runs.extend(found)
        position = aligned(found[-1].position + found[-1].length)
    if (rows < 0).any():
        raise UntraceableError("rows that no matrix has")
    order = None if (rows == np.arange(len(rows))).all() else tuple(rows.tolist())
    return tuple(matrices), order, runs


def _place_parts(source: EncodedTensor, expert: int, position: int) -> tuple[Matrix, list[Extent]]:
    """One matrix of `source`, its arrays one after the other from `position`."""
    arrays, runs = {}, []
    for name, part in source.parts.items():
        stacked = source.is_stacked(name)
        shape = part.shape[1:] if stacked else part.shape
        length = part.length // source.shape[0] if stacked else part.length
        arrays[name] = Array(part.dtype, tuple(shape), row_major(shape), position)
        runs.append(Extent(part.file, part.offset + expert * length * stacked, length, position))
        position = aligned(position + length)
    return Matrix(source.encoding, (source.shape[-2], source.shape[-1]), arrays), runs


def _place_plain(
    traced: Traced, entries: Mapping[str, TensorEntry], position: int
) -> tuple[Array, tuple[int, ...] | None, list[Extent]]:
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
    return Array(dtype, tuple(traced.shape), strides, position + first * dtype.itemsize), order, runs


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
