"""torch's kernels for a CPU, which multiply int4 and int8 as they lie in the slot."""

from __future__ import annotations

import torch
from torch import Tensor

from moe_local.formats.base import Arrays, Format, Shape
from moe_local.formats.int4 import Int4, native_rows
from moe_local.formats.int8 import Int8
from moe_local.kernels.base import MatrixKernel, Multiply
from moe_local.kernels.decode import matmul
from moe_local.memory.accelerator import on_cpu

# From one more row on decoding the matrix first is faster (measured: benchmarks/kernels.py).
INT4_ROWS = 159
INT8_ROWS = 47


def _takes_int4(form: Format, device: torch.device) -> bool:
    return on_cpu(device) and isinstance(form, Int4) and form.rows == native_rows()


def _bind_int4(form: Format, arrays: Arrays, shape: Shape) -> Multiply:
    assert isinstance(form, Int4)
    weight, scales, group = arrays["weight"], arrays["scales"], form.group
    kernel = torch.ops.aten._weight_int4pack_mm_for_cpu.default

    def multiply(x: Tensor) -> Tensor:
        if x.dtype is torch.bfloat16:
            same: Tensor = kernel(x.contiguous(), weight, group, scales)
            return same
        y: Tensor = kernel(x.to(torch.bfloat16).contiguous(), weight, group, scales)
        return y.to(x.dtype)

    return multiply


def _takes_int8(form: Format, device: torch.device) -> bool:
    return on_cpu(device) and isinstance(form, Int8)


def _bind_int8(form: Format, arrays: Arrays, shape: Shape) -> Multiply:
    weight, scales = arrays["weight"], arrays["scales"]

    def multiply(x: Tensor) -> Tensor:
        y: Tensor = torch.ops.aten._weight_int8pack_mm(x.to(torch.bfloat16).contiguous(), weight, scales)
        return y.to(x.dtype)

    return multiply


def _bind_int8_codes(form: Format, arrays: Arrays, shape: Shape) -> Multiply:
    """The codes are multiplied and the outputs scaled: a matrix of numbers less to make."""
    weight, scales = arrays["weight"], arrays["scales"]
    return lambda x: matmul(x, weight.to(x.dtype)) * scales.to(x.dtype)


TORCH_INT4 = MatrixKernel("torch int4", _takes_int4, _bind_int4, most_rows=INT4_ROWS)
TORCH_INT8 = MatrixKernel("torch int8", _takes_int8, _bind_int8, most_rows=INT8_ROWS)
INT8_CODES = MatrixKernel("int8 codes", _takes_int8, _bind_int8_codes, decodes=True)
