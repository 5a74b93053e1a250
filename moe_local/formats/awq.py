"""awq: 4-bit group-wise integers in int32 words along each row of the transposed matrix, as AutoAWQ packs them."""

from __future__ import annotations

import torch
from torch import Tensor

from moe_local.formats.base import Affine, Arrays, Shape
from moe_local.formats.grouped import Grouped, unpack


class Awq(Grouped):
    """`qweight` [in, out / 8] int32, `qzeros` [groups, out / 8] int32, `scales` [groups, out]."""

    def __init__(self, group: int = 0) -> None:
        super().__init__(4, group)

    def _integers(self, arrays: Arrays, shape: Shape) -> Affine:
        codes, zeros = _outputs(arrays["qweight"]), _outputs(arrays["qzeros"])
        scales = arrays["scales"].T.to(torch.float32)
        return Affine(codes, scales, zeros.to(torch.float32), self._bits)


def _outputs(words: Tensor) -> Tensor:
    """int32 [n, out / 8] -> uint8 [out, n]: of the eight outputs in a word the even ones come first."""
    mixed = unpack(words, 4)
    return mixed.view(len(mixed), -1, 2, 4).permute(1, 3, 2, 0).flatten(0, 2)
