"""packed: group-wise integers in int32 words along each row, as compressed-tensors packs them."""

from __future__ import annotations

import torch

from moe_local.formats.base import Affine, Arrays, Shape
from moe_local.formats.grouped import Grouped, by_row, unpack


class Packed(Grouped):
    """`weight` [out, in * bits / 32] int32, `scale` [out, groups] or one number.

    `zero_point`, if any, is [out * bits / 32, groups] int32, packed along the rows, or [out, groups] int8; the words
    hold unsigned numbers, and the int8 ones are signed.
    """

    def _integers(self, arrays: Arrays, shape: Shape) -> Affine:
        out, width = shape
        codes = unpack(arrays["weight"], self._bits)[:, :width]
        scales = by_row(arrays["scale"], out)
        middle = 1 << (self._bits - 1)
        zeros = torch.full_like(scales, middle)
        if "zero_point" in arrays:
            stored = arrays["zero_point"]
            signed = stored.dtype == torch.int8
            zeros = stored.float() + middle if signed else unpack(stored.T, self._bits).T[:out].float()
        return Affine(codes, scales, zeros, self._bits)
