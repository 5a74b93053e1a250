"""nvfp4: 4-bit floats (E2M1), 16 of a row to an 8-bit float (E4M3) that scales them, and one scale for all of these.

https://developer.nvidia.com/blog/introducing-nvfp4-for-efficient-and-accurate-low-precision-inference/
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from moe_local.formats.base import Arrays, Mergeable, Shape, stacked
from moe_local.formats.lookup import look_up_halves, widened
from moe_local.formats.mxfp4 import VALUES, nearest_codes

BLOCK = 16
_MOST_SCALE = torch.finfo(torch.float8_e4m3fn).max
_MOST_CODE = 6.0


class Nvfp4(Mergeable):
    """`weight` [out, in / 2] uint8, two numbers a byte, the low half first; `scale` [out, in / 16] float8_e4m3fn;
    `whole`, float32, one number or one a row, that multiplies the scales, or `divides` them; 1 if it is not there.
    """

    def __init__(self, divides: int = 0) -> None:
        self.divides = bool(divides)

    def encode(self, weight: Tensor) -> dict[str, Tensor]:
        """One number for all such that the largest scale is E4M3's largest; scales from each block's largest."""
        wide = weight.to(torch.float32).contiguous().view(len(weight), -1, BLOCK)
        largest = wide.abs().amax(dim=-1)
        most = largest.max() if largest.numel() else largest.sum()
        whole = torch.where(most > 0, most / (_MOST_CODE * _MOST_SCALE), 1.0)
        scale = (largest / (_MOST_CODE * whole)).clamp(max=_MOST_SCALE).to(torch.float8_e4m3fn)
        steps = (scale.to(torch.float32) * whole).unsqueeze(-1)
        codes = nearest_codes(torch.where(steps > 0, wide / steps, 0.0))
        rows = (1 / whole if self.divides else whole).expand(len(weight))
        return {"weight": (codes[..., ::2] | codes[..., 1::2] << 4).flatten(1), "scale": scale, "whole": rows.clone()}

    def decode(self, arrays: Arrays, shape: Shape, dtype: torch.dtype) -> Tensor:
        weight, scale = arrays["weight"], widened(arrays["scale"])
        if "whole" in arrays:
            whole = arrays["whole"].reshape(-1, 1)
            scale = scale / whole if self.divides else scale * whole
        numbers = look_up_halves(VALUES, weight, low_first=True).view(*scale.shape, BLOCK)
        return numbers.mul_(scale.unsqueeze(-1)).view(shape).to(dtype)

    def merge(self, parts: Sequence[Arrays], order: Sequence[int] | None) -> dict[str, Tensor]:
        return {
            "weight": stacked([part["weight"] for part in parts], order),
            "scale": stacked([part["scale"] for part in parts], order),
            "whole": stacked([_by_row(part) for part in parts], order),
        }


def _by_row(arrays: Arrays) -> Tensor:
    rows = len(arrays["weight"])
    return arrays["whole"].reshape(-1).expand(rows) if "whole" in arrays else torch.ones(rows)
