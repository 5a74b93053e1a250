"""gptq: group-wise integers in int32 words along each column, as GPTQ's tools pack them."""

from __future__ import annotations

import torch

from moe_local.formats.base import Affine, Arrays, Shape
from moe_local.formats.grouped import Grouped, unpack


class Gptq(Grouped):
    """`qweight` [in * bits / 32, out] int32, `qzeros` [groups, out * bits / 32] int32, `scales` [groups, out].

    `less` is how much less than they mean the zeros were stored: 1 in the first version of the format. What was 0
    has wrapped around.
    """

    def __init__(self, bits: int, group: int = 0, less: int = 1) -> None:
        super().__init__(bits, group)
        self._less = less

    def _integers(self, arrays: Arrays, shape: Shape) -> Affine:
        codes = unpack(arrays["qweight"].T, self._bits)
        stored = unpack(arrays["qzeros"], self._bits)
        zeros = (stored + self._less) & ((1 << self._bits) - 1)
        scales = arrays["scales"].T.to(torch.float32)
        return Affine(codes, scales, zeros.T.to(torch.float32), self._bits)
