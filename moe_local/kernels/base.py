"""What a kernel is: a way to multiply by a matrix that lies encoded in memory."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from moe_local.formats.base import Arrays, Format, Shape

Multiply = Callable[[Tensor], Tensor]  # x [rows, in] -> [rows, out], in x's dtype
ANY_ROWS = sys.maxsize


@dataclass(frozen=True)
class MatrixKernel:
    """Multiplies rows by matrices of the formats and on the devices that it `takes`, up to `most_rows` at once.

    `bind` makes the multiplication by the matrix that lies in some arrays, now and whenever it is called. With
    `decodes`, the whole matrix [out, in] is made in the dtype of the rows each time: memory that a plan must leave.
    """

    name: str
    takes: Callable[[Format, torch.device], bool]
    bind: Callable[[Format, Arrays, Shape], Multiply]
    most_rows: int = ANY_ROWS
    decodes: bool = False
