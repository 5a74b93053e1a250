"""The bytes of a record, and the arrays of a quantised tensor, read as matrices."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from moe_local.checkpoint import record
from moe_local.checkpoint.record import Array, EncodedTensor
from moe_local.formats.base import Whole
from moe_local.formats.registry import format_of


def views(matrix: record.Matrix, slot: Tensor) -> dict[str, Tensor]:
    """The arrays of a matrix of the record in `slot`."""
    return {name: view(array, slot) for name, array in matrix.arrays.items()}


def view(array: Array, slot: Tensor) -> Tensor:
    """An array of the record in `slot` (uint8 [bytes]): no copy."""
    typed = slot[: slot.numel() // array.dtype.itemsize * array.dtype.itemsize].view(array.dtype)
    start = typed.storage_offset() + array.position // array.dtype.itemsize
    return typed.as_strided(array.shape, array.strides, start)


def decode_bias(placed: record.Projection, slot: Tensor) -> Tensor | None:
    """The bias of a projection [out], in the model's order."""
    if placed.bias is None:
        return None
    bias = view(placed.bias, slot)
    return bias if placed.bias_order is None else bias[list(placed.bias_order)]


def decode_projection(placed: record.Projection, slot: Tensor, dtype: torch.dtype) -> Tensor:
    """The numbers of a projection [out, in], in the model's order."""
    parts = [format_of(m.encoding).decode(views(m, slot), m.shape, dtype) for m in placed.matrices]
    weight = parts[0] if len(parts) == 1 else torch.cat(parts)
    return weight if placed.order is None else weight[list(placed.order)]


def decode_tensor(source: EncodedTensor, arrays: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    """The numbers of a whole encoded tensor, as the unquantised checkpoint would hold them."""
    scheme = format_of(source.encoding)
    if isinstance(scheme, Whole):
        return scheme.tensor(arrays, dtype)
    shape = (source.shape[-2], source.shape[-1])
    if len(source.shape) == 2:
        weight = scheme.decode(arrays, shape, dtype)
    else:
        each = (
            {name: array[i] if source.is_stacked(name) else array for name, array in arrays.items()}
            for i in range(source.shape[0])
        )
        weight = torch.stack([scheme.decode(parts, shape, dtype) for parts in each])
    return weight.transpose(-1, -2) if source.transposed else weight
