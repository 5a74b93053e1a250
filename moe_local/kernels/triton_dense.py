"""The Triton kernels for one matrix: rows by a matrix that stays encoded."""

from __future__ import annotations

import torch
from torch import Tensor

from moe_local.formats.base import Arrays, Format, Shape
from moe_local.formats.plain import Plain
from moe_local.kernels.base import MatrixKernel, Multiply
from moe_local.kernels.triton_launch import Launcher, launcher
from moe_local.kernels.triton_layout import COLUMNS, tiled, vector
from moe_local.kernels.triton_matrix import KINDS, Lying, reader_of, reads, values
from moe_local.kernels.triton_probe import usable
from moe_local.memory.accelerator import has_triton_cores, launching_on

_VECTOR_ROWS = 4  # up to so many, those that read the same part of the matrix at once share it in the GPU's cache


def _takes(form: Format, device: torch.device, shape: Shape) -> bool:
    return not isinstance(form, Plain) and usable(device) and reads(form, shape)


def _bind(form: Format, arrays: Arrays, shape: Shape, exact: bool) -> Multiply | None:
    lying = {name: Lying(array.dtype, tuple(array.shape), array.stride()) for name, array in arrays.items()}
    reader = reader_of(form, shape, lying)
    if reader is None:
        return None
    held = tuple(None if name is None else arrays[name].reshape(-1).view(torch.uint8) for name in reader.arrays)
    out, width = shape
    numbers = (width, out, reader.units, reader.pitch, reader.across)
    one = vector(reader, out)
    table = values(reader.table, next(iter(arrays.values())).device)

    kept: dict[object, Launcher] = {}

    def multiply(x: Tensor) -> Tensor:
        rows = (x if x.dtype in KINDS else x.float()).contiguous()
        y = rows.new_empty(len(rows), out)
        if len(rows):
            with launching_on(rows.device):
                launch(rows, y)
        return y.to(x.dtype)

    def launch(rows: Tensor, y: Tensor) -> None:
        from moe_local.kernels.triton_tiled import dense_tiled
        from moe_local.kernels.triton_vector import dense_vector

        if len(rows) <= _VECTOR_ROWS:
            single = launcher(kept, "single", lambda: Launcher(dense_vector, numbers, one))
            single(len(rows), -(-out // one["tile"][0]), rows, *held, y, table)
            return
        in_float = rows.dtype == torch.float32 or not has_triton_cores(rows.device)
        many = tiled(reader, out, 16 if len(rows) <= 32 else 64, in_float)
        grid = (-(-out // COLUMNS), -(-len(rows) // many["tile"][0]))
        dense_tiled[grid](rows, *held, y, table, len(rows), *numbers, **many)

    return multiply


TRITON = MatrixKernel("triton", _takes, _bind)
