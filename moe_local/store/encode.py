"""From one encoding to another: a record's projections, and whole dense matrices."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from moe_local.checkpoint.encoding import Encoding
from moe_local.checkpoint.record import PLAIN, Array, EncodedTensor, Layout, Matrix, Projection, aligned
from moe_local.checkpoint.tracing import row_major
from moe_local.formats.base import Affine, HasAffine, Mergeable
from moe_local.formats.int4 import Int4
from moe_local.formats.records import decode_bias, decode_projection, decode_tensor, views
from moe_local.formats.registry import format_of, packable
from moe_local.store.dense_packing import fitting
from moe_local.store.writer import PAGE, Planned


@lru_cache(maxsize=1024)
def encoded_specs(encoding: Encoding, shape: tuple[int, int]) -> dict[str, Planned]:
    """The arrays that a matrix of `shape` becomes."""
    arrays = packable(encoding).encode(torch.empty(shape, dtype=torch.bfloat16, device="meta"))
    return {name: Planned(array.dtype, tuple(array.shape)) for name, array in arrays.items()}


def packed_layout(source: Layout, choose: Callable[[Encoding], Encoding]) -> Layout:
    """The layout of `source`'s records once every projection is one matrix in the model's order.

    `choose` gives its encoding from the one that it has.
    """
    position = 0
    projections = {}

    def place(spec: Planned) -> Array:
        nonlocal position
        array = Array(spec.dtype, spec.shape, row_major(spec.shape), position)
        position = aligned(position + spec.length)
        return array

    for name, projection in source.projections.items():
        chosen = _widest([choose(matrix.encoding) for matrix in projection.matrices], projection.shape)
        arrays = {key: place(spec) for key, spec in encoded_specs(chosen, projection.shape).items()}
        bias = projection.bias
        placed = None if bias is None else place(Planned(bias.dtype, bias.shape))
        projections[name] = Projection((Matrix(chosen, projection.shape, arrays),), bias=placed)
    return Layout(projections, aligned(position, PAGE))


def _widest(encodings: Sequence[Encoding], shape: tuple[int, int]) -> Encoding:
    """Of what the parts of a projection would be packed into, that which takes the most bytes: it loses the least."""
    fit = dict.fromkeys(fitting(encoding, shape) for encoding in encodings)
    return max(fit, key=lambda encoding: sum(spec.length for spec in encoded_specs(encoding, shape).values()))


def encode_record(source: Layout, target: Layout, record: Tensor) -> list[Tensor]:
    """The bytes of a record of layout `source` (uint8 [bytes]) as those of `target`, in parts one after the other."""
    parts: list[Tensor] = []
    written = 0

    def put(array: Array, content: Tensor) -> None:
        nonlocal written
        if array.position > written:
            parts.append(torch.zeros(array.position - written, dtype=torch.uint8))
        data = content.contiguous().reshape(-1).view(torch.uint8)
        parts.append(data)
        written = array.position + data.numel()

    for name, projection in source.projections.items():
        new = target.projections[name]
        (matrix,) = new.matrices
        arrays = encode_projection(projection, record, matrix.encoding)
        for key, array in matrix.arrays.items():
            put(array, arrays[key])
        bias = decode_bias(projection, record)
        if bias is not None and new.bias is not None:
            put(new.bias, bias)
    parts.append(torch.zeros(target.size - written, dtype=torch.uint8))
    return parts


def encode_projection(projection: Projection, record: Tensor, encoding: Encoding) -> dict[str, Tensor]:
    """The arrays of a projection as one matrix: the very same integers where both hold integers."""
    target = packable(encoding)
    if isinstance(target, Int4) and (same := _same_integers(projection, record, target)) is not None:
        return target.hold(same)
    if isinstance(target, Mergeable) and all(matrix.encoding == encoding for matrix in projection.matrices):
        merged = target.merge([views(matrix, record) for matrix in projection.matrices], projection.order)
        if merged is not None:
            return merged
    plain = all(matrix.encoding in PLAIN.values() for matrix in projection.matrices)
    dtype = projection.matrices[0].arrays["weight"].dtype if plain else torch.float32
    return target.encode(decode_projection(projection, record, dtype))


def encode_tensor(
    source: EncodedTensor, arrays: Mapping[str, Tensor], encoding: Encoding, dtype: torch.dtype
) -> dict[str, Tensor]:
    """As `encode_projection`, for a dense matrix."""
    target = packable(encoding)
    shape = (source.shape[0], source.shape[1])
    if isinstance(target, Int4) and (same := _integers(source.encoding, arrays, shape, target)) is not None:
        return target.hold(same)
    if isinstance(target, Mergeable) and source.encoding == encoding:
        merged = target.merge([arrays], None)
        if merged is not None:
            return merged
    return target.encode(decode_tensor(source, arrays, dtype))


def _integers(
    encoding: Encoding, arrays: Mapping[str, Tensor], shape: tuple[int, int], target: Int4
) -> Affine | None:
    """The integers of a matrix if `target` can hold the very same."""
    scheme = format_of(encoding)
    found = scheme.affine(arrays, shape) if isinstance(scheme, HasAffine) else None
    same = found is not None and found.bits <= 4 and shape[1] // found.scales.shape[1] == target.group
    return found if same else None


def _same_integers(projection: Projection, record: Tensor, target: Int4) -> Affine | None:
    parts = []
    for matrix in projection.matrices:
        found = _integers(matrix.encoding, views(matrix, record), matrix.shape, target)
        if found is None:
            return None
        parts.append(found)
    order = list(range(projection.shape[0])) if projection.order is None else list(projection.order)
    return Affine(
        torch.cat([part.codes for part in parts])[order],
        torch.cat([part.scales for part in parts])[order],
        torch.cat([part.zeros for part in parts])[order],
        bits=4,
    )
