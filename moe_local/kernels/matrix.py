"""The kernel for a matrix: by its encoding and its device. A new one is a line here."""

from __future__ import annotations

from functools import lru_cache

import torch

from moe_local.checkpoint.encoding import Encoding
from moe_local.formats.base import Arrays, Shape
from moe_local.formats.registry import format_of
from moe_local.kernels.base import MatrixKernel, Multiply
from moe_local.kernels.cpu import NATIVE
from moe_local.kernels.decode import DECODE

KERNELS = (NATIVE, DECODE)  # the first that can, multiplies


@lru_cache(maxsize=256)
def kernel_for(encoding: Encoding, device: torch.device) -> MatrixKernel:
    """Who multiplies by a matrix of this encoding on this device."""
    form = format_of(encoding)
    return next(kernel for kernel in KERNELS if kernel.takes(form, device))


def bind(encoding: Encoding, arrays: Arrays, shape: Shape, *, exact: bool = False) -> Multiply:
    """The multiplication by a matrix [out, in] of this encoding in `arrays`; `exact` as `MatrixKernel` says."""
    device = next(iter(arrays.values())).device
    return kernel_for(encoding, device).bind(format_of(encoding), arrays, shape, exact)
