"""The native kernels for a CPU, which multiply by encoded matrices as they lie in the slot."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from moe_local.formats.base import Arrays, Format, Shape
from moe_local.formats.fp8 import Fp8
from moe_local.formats.gguf import Gguf
from moe_local.formats.int4 import Int4
from moe_local.formats.int8 import GROUP, Int8
from moe_local.formats.mxfp4 import Mxfp4
from moe_local.formats.nf4 import Nf4
from moe_local.formats.nvfp4 import Nvfp4
from moe_local.kernels import native
from moe_local.kernels.base import MatrixKernel, Multiply
from moe_local.memory.accelerator import on_cpu

_BLOCK = 16  # rows that are multiplied together
_COLUMNS = 64  # and columns, of numbers of a table
_GGUF = {"Q4_0": 32, "Q8_0": 32, "Q4_K": 32, "Q5_K": 32, "Q6_K": 16, "MXFP4": 32}  # columns of a group


class NativeKind(NamedTuple):
    """What the native kernels call a format: its kind, the columns of a group, and the arrays that hold it.

    The scales of numbers of a table, float32, are one for `scale_rows` rows and `scale_columns` columns.
    """

    kind: str
    group: int
    data: str = "blocks"
    scales: str | None = None
    whole: str | None = None  # float32, one a row
    scale_rows: int = 1
    scale_columns: int = 1
    rotary_heads: int = 0  # whose outputs are interleaved: see `Gguf`

    @property
    def arrays(self) -> tuple[str, str | None, str | None]:
        return self.data, self.scales, self.whole


def native_kind(form: Format, shape: Shape) -> NativeKind | None:
    """For a matrix [out, in]; None if it is none of theirs."""
    if isinstance(form, Int4):
        return NativeKind("int4", form.group)
    if isinstance(form, Int8):
        return NativeKind("int8", GROUP)
    if shape[0] % _BLOCK:
        return None
    if isinstance(form, Mxfp4):
        return NativeKind("mxfp4", 32, scales="scales")
    if isinstance(form, Nvfp4):
        kind = "nvfp4_divided" if form.divides else "nvfp4"
        return NativeKind(kind, 16, "weight", "scale", "whole") if shape[1] % 32 == 0 else None
    if isinstance(form, Gguf) and form.type in _GGUF:
        name = "gguf_mxfp4" if form.type == "MXFP4" else form.type.lower()
        return NativeKind(name, _GGUF[form.type], rotary_heads=form.rotary_heads)
    return _of_a_table(form, shape) if shape[1] % _COLUMNS == 0 else None


def _of_a_table(form: Format, shape: Shape) -> NativeKind | None:
    if isinstance(form, Nf4) and not form.nested and form.block % _COLUMNS == 0 and shape[1] % form.block == 0:
        return NativeKind(form.table, _COLUMNS, "weight", "absmax", scale_columns=form.block)
    if isinstance(form, Fp8) and (form.columns or _COLUMNS) % _COLUMNS == 0:
        rows, columns = form.rows or 1, form.columns or shape[1]
        return NativeKind("fp8", _COLUMNS, "weight", "scale", scale_rows=rows, scale_columns=columns)
    return None


def _takes(form: Format, device: torch.device, shape: Shape) -> bool:
    return on_cpu(device) and native.missing() is None and native_kind(form, shape) is not None


def _bind(form: Format, arrays: Arrays, shape: Shape, exact: bool) -> Multiply | None:
    from moe_local.kernels.native._native import multiply_dense

    found = native_kind(form, shape)
    assert found is not None
    held = [arrays.get(name) if name else None for name in found.arrays]
    specs = [None if array is None else (array.dtype, tuple(array.shape)) for array in held]
    if any(array is not None and not array.is_contiguous() for array in held) or not is_held(found, shape, *specs):
        return None
    kind, group, heads = found.kind, found.group, found.rotary_heads
    out, width = shape
    data, scales, whole = ((0, 0) if array is None else (array.data_ptr(), array.nbytes) for array in held)

    def multiply(x: Tensor) -> Tensor:
        rows = native.multipliable(x)
        count = rows.shape[0]
        y = rows.new_empty(count, out)
        if count:
            multiply_dense(
                native.machine(), kind, out, width, group, found.scale_rows, found.scale_columns, exact,
                *data, *scales, *whole, 0, 0,
                count, rows.data_ptr(), rows.nbytes, y.data_ptr(), y.nbytes, native.TYPES[rows.dtype],
            )  # fmt: skip
        if heads:
            y = y.view(count, heads, -1, 2).transpose(2, 3).reshape(count, out)
        return y if y.dtype is x.dtype else y.to(x.dtype)

    multiply.__dict__["held"] = held  # or their memory would be another's
    return multiply


Spec = tuple[torch.dtype, tuple[int, ...]]


def is_held(found: NativeKind, shape: Shape, data: Spec | None, scales: Spec | None, whole: Spec | None) -> bool:
    """Whether the arrays of a matrix [out, in] are of the types and sizes that its kind needs."""
    if data is None or (found.whole is not None and whole != (torch.float32, shape[:1])):
        return False
    if found.kind == "fp8" and data[0] != torch.float8_e4m3fn:
        return False
    if found.scale_columns == 1:
        return found.scales is None or scales is not None
    down, across = -(-shape[0] // found.scale_rows), -(-shape[1] // found.scale_columns)
    return scales is not None and scales[0] == torch.float32 and math.prod(scales[1]) == down * across


NATIVE = MatrixKernel("native", _takes, _bind)
