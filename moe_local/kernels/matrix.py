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
from moe_local.kernels.triton_dense import TRITON

KERNELS = (NATIVE, TRITON, DECODE)  # the first that can, multiplies


@lru_cache(maxsize=256)
def kernel_for(encoding: Encoding, device: torch.device, shape: Shape) -> MatrixKernel:
    """Who multiplies by a matrix [out, in] of this encoding on this device."""
    form = format_of(encoding)
    return next(kernel for kernel in KERNELS if kernel.takes(form, device, shape))


def bind(encoding: Encoding, arrays: Arrays, shape: Shape, *, exact: bool = False) -> Multiply:
    """The multiplication by a matrix [out, in] of this encoding that lies in `arrays`; see `MatrixKernel.bind`."""
    device = next(iter(arrays.values())).device
    form = format_of(encoding)
    made = (kernel.bind(form, arrays, shape, exact) for kernel in KERNELS if kernel.takes(form, device, shape))
    return next(multiply for multiply in made if multiply is not None)
