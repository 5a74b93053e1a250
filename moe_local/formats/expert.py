"""An expert in a slot: its record's bytes read as matrices, ready to multiply."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from moe_local.checkpoint import record
from moe_local.checkpoint.record import Array, EncodedTensor, Layout
from moe_local.formats.base import Multiply
from moe_local.formats.registry import format_of


@dataclass(frozen=True, slots=True)
class Projection:
    """`x @ weight.T + bias`, its outputs put in the model's `order` where the record has another."""

    matrices: tuple[Multiply, ...]
    bias: Tensor | None  # [out]
    order: Tensor | None  # [out] int64
    bias_order: Tensor | None  # [out] int64

    def __call__(self, x: Tensor) -> Tensor:
        """x [rows, in] -> [rows, out] in x's dtype."""
        outputs = [multiply(x) for multiply in self.matrices]
        y = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)
        if self.order is not None:
            y = y[:, self.order]
        if self.bias is None:
            return y
        bias = self.bias if self.bias_order is None else self.bias[self.bias_order]
        return y + bias.to(x.dtype)


@dataclass(frozen=True, slots=True)
class Expert:
    """One expert. Its arrays are views of the slot: no copy."""

    up: Multiply  # or gate and up together
    down: Multiply


def open_expert(layout: Layout, slot: Tensor) -> Expert:
    """The expert whose record of `layout` lies in `slot` (uint8 [bytes])."""
    up = "gate_up_proj" if "gate_up_proj" in layout.projections else "up_proj"
    return Expert(_projection(layout.projections[up], slot), _projection(layout.projections["down_proj"], slot))


def _projection(placed: record.Projection, slot: Tensor) -> Multiply:
    matrices = tuple(format_of(matrix.encoding).bind(views(matrix, slot), matrix.shape) for matrix in placed.matrices)
    if len(matrices) == 1 and placed.bias is None and placed.order is None:
        return matrices[0]
    bias = None if placed.bias is None else _view(placed.bias, slot)
    return Projection(matrices, bias, _index(placed.order, slot), _index(placed.bias_order, slot))


def _index(order: tuple[int, ...] | None, slot: Tensor) -> Tensor | None:
    return None if order is None else torch.tensor(order, device=slot.device)


def views(matrix: record.Matrix, slot: Tensor) -> dict[str, Tensor]:
    """The arrays of a matrix of the record in `slot`."""
    return {name: _view(array, slot) for name, array in matrix.arrays.items()}


def _view(array: Array, slot: Tensor) -> Tensor:
    typed = slot[: slot.numel() // array.dtype.itemsize * array.dtype.itemsize].view(array.dtype)
    start = typed.storage_offset() + array.position // array.dtype.itemsize
    return typed.as_strided(array.shape, array.strides, start)


def decode_bias(placed: record.Projection, slot: Tensor) -> Tensor | None:
    """The bias of a projection [out], in the model's order."""
    if placed.bias is None:
        return None
    bias = _view(placed.bias, slot)
    return bias if placed.bias_order is None else bias[list(placed.bias_order)]


def decode_projection(placed: record.Projection, slot: Tensor, dtype: torch.dtype) -> Tensor:
    """The numbers of a projection [out, in], in the model's order."""
    parts = [format_of(m.encoding).decode(views(m, slot), m.shape, dtype) for m in placed.matrices]
    weight = parts[0] if len(parts) == 1 else torch.cat(parts)
    return weight if placed.order is None else weight[list(placed.order)]


def decode_tensor(source: EncodedTensor, arrays: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    """The numbers of a whole encoded tensor, as the unquantised checkpoint would hold them."""
    shape = (source.shape[-2], source.shape[-1])
    scheme = format_of(source.encoding)
    if len(source.shape) == 2:
        weight = scheme.decode(arrays, shape, dtype)
    else:
        each = (
            {name: array[i] if source.is_stacked(name) else array for name, array in arrays.items()}
            for i in range(source.shape[0])
        )
        weight = torch.stack([scheme.decode(parts, shape, dtype) for parts in each])
    return weight.transpose(-1, -2) if source.transposed else weight
