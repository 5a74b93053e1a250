"""int8: signed bytes with a scale a row or a group of columns."""

from __future__ import annotations

import torch
from torch import Tensor

from moe_local.formats.base import Affine, Arrays, Shape
from moe_local.formats.grouped import Grouped, by_row

_MIDDLE = 128  # of the codes, which are unsigned


class SignedInt8(Grouped):
    """`weight` [out, in] int8, `scale` [out, groups] or one number, and `zero_point` int8 of its shape, if any."""

    def __init__(self, group: int = 0) -> None:
        super().__init__(8, group)

    def _integers(self, arrays: Arrays, shape: Shape) -> Affine:
        out = shape[0]
        scales = by_row(arrays["scale"], out)
        zeros = torch.zeros_like(scales)
        if "zero_point" in arrays:
            zeros = by_row(arrays["zero_point"], out)
        return Affine(_unsigned(arrays["weight"]), scales, zeros + _MIDDLE, 8)


class AbsmaxInt8(Grouped):
    """`weight` [out, in] int8 and `absmax` [out] float32: what 127 means in each row, as bitsandbytes has it."""

    _UNIT = 0.007874015718698502  # 1 / 127, as bitsandbytes multiplies

    def __init__(self) -> None:
        super().__init__(8)

    def _integers(self, arrays: Arrays, shape: Shape) -> Affine:
        scales = by_row(arrays["absmax"], shape[0]) * self._UNIT
        return Affine(_unsigned(arrays["weight"]), scales, torch.full_like(scales, _MIDDLE), 8)

    def decode(self, arrays: Arrays, shape: Shape, dtype: torch.dtype) -> Tensor:
        """In the order in which bitsandbytes multiplies: the last bit depends on it."""
        return (arrays["weight"] * by_row(arrays["absmax"], shape[0])).mul_(self._UNIT).to(dtype)


def _unsigned(weight: Tensor) -> Tensor:
    return weight.view(torch.uint8) ^ _MIDDLE
