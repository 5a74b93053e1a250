"""awq: 4-bit group-wise integers in int32 words along each row of the transposed matrix, as AutoAWQ packs them."""

from __future__ import annotations

import torch
from torch import Tensor

from moe_local.formats.base import Affine, Arrays, Shape
from moe_local.formats.grouped import Grouped, unpack

_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)  # where in a word each of eight outputs is


class Awq(Grouped):
    """`qweight` [in, out / 8] int32, `qzeros` [groups, out / 8] int32, `scales` [groups, out]."""

    def __init__(self, group: int = 0) -> None:
        super().__init__(4, group)

    def _integers(self, arrays: Arrays, shape: Shape) -> Affine:
        codes, zeros = _outputs(arrays["qweight"]), _outputs(arrays["qzeros"])
        scales = arrays["scales"].T.to(torch.float32)
        return Affine(codes, scales, zeros.to(torch.float32), self._bits)


def _outputs(words: Tensor) -> Tensor:
    """int32 [n, out / 8] -> uint8 [out, n]."""
    mixed = unpack(words, 4)
    return mixed.view(len(mixed), -1, 8).permute(1, 2, 0)[:, _PLACES].flatten(0, 1)
