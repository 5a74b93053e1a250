"""The native kernels for a CPU, which multiply int4 and int8 as they lie in the slot."""

from __future__ import annotations

import torch
from torch import Tensor

from moe_local.formats.base import Arrays, Format, Shape
from moe_local.formats.int4 import Int4
from moe_local.formats.int8 import GROUP, Int8
from moe_local.kernels import native
from moe_local.kernels.base import MatrixKernel, Multiply
from moe_local.memory.accelerator import on_cpu


def kind_of(form: Format) -> tuple[str, int] | None:
    """What the native kernels call a format, and the columns of a group; None if it is not theirs."""
    if isinstance(form, Int4):
        return "int4", form.group
    return ("int8", GROUP) if isinstance(form, Int8) else None


def _takes(form: Format, device: torch.device) -> bool:
    return on_cpu(device) and kind_of(form) is not None and native.missing() is None


def _bind(form: Format, arrays: Arrays, shape: Shape, exact: bool) -> Multiply:
    from moe_local.kernels.native._native import multiply_dense

    found = kind_of(form)
    assert found is not None
    kind, group = found
    out, width = shape
    blocks = arrays["blocks"]  # held, or its memory would be another's
    address, size = blocks.data_ptr(), blocks.nbytes

    def multiply(x: Tensor) -> Tensor:
        rows = native.multipliable(x)
        y = rows.new_empty(len(rows), out)
        if len(rows):
            multiply_dense(
                native.machine(), kind, out, width, group, exact, address, size, 0, 0,
                len(rows), rows.data_ptr(), rows.nbytes, y.data_ptr(), y.nbytes, native.TYPES[rows.dtype],
            )  # fmt: skip
        return y.to(x.dtype)

    # The closure is all that keeps the matrix alive.
    multiply.__dict__["blocks"] = blocks
    return multiply


NATIVE = MatrixKernel("native", _takes, _bind)
