"""Decode the matrix, then multiply: for every format on every device, and the reference for all other kernels."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from moe_local.formats.base import Arrays, Format, Shape
from moe_local.kernels.base import MatrixKernel, Multiply
from moe_local.memory.accelerator import on_cpu


def matmul(x: Tensor, weight: Tensor) -> Tensor:
    """x [rows, in] @ weight [out, in].T -> [rows, out].

    A CPU's matrix library makes and keeps a program for every number of rows it meets: hundreds of megabytes for the
    counts that routing gives. Rounded up, there are a dozen.
    """
    rows = len(x)
    if rows < 5 or not on_cpu(x.device):
        return F.linear(x, weight)
    step = 1 << (rows.bit_length() - 2)  # 4, 6, 8, 12, 16, 24 ...: never half too many
    more = -rows % step
    return F.linear(F.pad(x, (0, 0, 0, more)), weight)[:rows] if more else F.linear(x, weight)


def _bind(form: Format, arrays: Arrays, shape: Shape, exact: bool) -> Multiply:
    return lambda x: matmul(x, form.decode(arrays, shape, x.dtype))


DECODE = MatrixKernel("decode", lambda form, device, shape: True, _bind, decodes=True)
