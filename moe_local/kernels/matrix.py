"""The kernel for a matrix: by its encoding, its device and how many rows are multiplied. A new one is a line here."""

from __future__ import annotations

from functools import lru_cache

import torch

from moe_local.checkpoint.encoding import Encoding
from moe_local.formats.base import Arrays, Shape
from moe_local.formats.registry import format_of
from moe_local.kernels.base import MatrixKernel, Multiply
from moe_local.kernels.cpu import INT8_CODES, TORCH_INT4, TORCH_INT8
from moe_local.kernels.decode import DECODE

KERNELS = (TORCH_INT4, TORCH_INT8, INT8_CODES, DECODE)  # the first that can, multiplies


def kernel_for(encoding: Encoding, device: torch.device, rows: int) -> MatrixKernel:
    """Who multiplies so many rows by a matrix of this encoding on this device."""
    return next(kernel for kernel in _kernels(encoding, device) if rows <= kernel.most_rows)


@lru_cache(maxsize=256)
def _kernels(encoding: Encoding, device: torch.device) -> tuple[MatrixKernel, ...]:
    """For ever more rows: each up to its `most_rows`, the last for any number."""
    form = format_of(encoding)
    found: list[MatrixKernel] = []
    for kernel in KERNELS:
        if kernel.takes(form, device) and (not found or found[-1].most_rows < kernel.most_rows):
            found.append(kernel)
    return tuple(found)


def bind(encoding: Encoding, arrays: Arrays, shape: Shape) -> Multiply:
    """The multiplication by a matrix [out, in] of this encoding that lies in `arrays`."""
    device = next(iter(arrays.values())).device
    form = format_of(encoding)
    *few, last = ((kernel.most_rows, kernel.bind(form, arrays, shape)) for kernel in _kernels(encoding, device))
    multiply = last[1]
    for most, smaller in reversed(few):
        multiply = _up_to(most, smaller, multiply)
    return multiply


def _up_to(most: int, few: Multiply, many: Multiply) -> Multiply:
    return lambda x: few(x) if len(x) <= most else many(x)
