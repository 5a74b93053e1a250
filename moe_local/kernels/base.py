"""What a kernel is: a way to multiply by a matrix that lies encoded in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from moe_local.formats.base import Arrays, Format, Shape

Multiply = Callable[[Tensor], Tensor]  # x [rows, in] -> [rows, out], in x's dtype


@dataclass(frozen=True)
class MatrixKernel:
    """Multiplies rows by matrices of the formats and shapes, and on the devices, that it `takes`.

    `bind` makes the multiplication by the matrix that lies in some arrays, now and whenever it is called, by
    activations that are `exact`, or rounded to 8 bits where the kernel gains by it; None where the arrays do not lie
    as it needs them. With `decodes`, the whole matrix [out, in] is made in the dtype of the rows each time: memory
    that a plan must leave.
    """

    name: str
    takes: Callable[[Format, torch.device, Shape], bool]
    bind: Callable[[Format, Arrays, Shape, bool], Multiply | None]
    decodes: bool = False
