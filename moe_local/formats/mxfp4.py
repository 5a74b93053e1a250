"""mxfp4: 4-bit floats (E2M1) that share a power of two (E8M0), 32 of them along a row.

https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_local.formats.base import Arrays, Packable, Shape
from moe_local.formats.lookup import look_up_halves

BLOCK = 32
_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
VALUES = (*_MAGNITUDES, *(-value for value in _MAGNITUDES))
_LARGEST_EXPONENT = 2  # of E2M1: 6 is 1.5 * 2**2
_BIAS = 127


class Mxfp4(Packable):
    """`blocks` [out, in / 32, 16] uint8, two numbers a byte, the low half first; `scales` [out, in / 32] uint8."""

    def encode(self, weight: Tensor) -> dict[str, Tensor]:
        """As the specification converts: the block's exponent from its largest number, ties to even, no overflow."""
        wide = weight.to(torch.float32).contiguous().view(len(weight), -1, BLOCK)
        exponents = torch.frexp(wide.abs().amax(dim=-1)).exponent - 1 - _LARGEST_EXPONENT
        exponents = exponents.clamp(-_BIAS, _BIAS)
        scaled = torch.ldexp(wide, -exponents.unsqueeze(-1))
        codes = nearest_codes(scaled)
        return {"blocks": codes[..., ::2] | codes[..., 1::2] << 4, "scales": (exponents + _BIAS).to(torch.uint8)}

    def decode(self, arrays: Arrays, shape: Shape, dtype: torch.dtype) -> Tensor:
        blocks = arrays["blocks"]
        numbers = look_up_halves(VALUES, blocks, low_first=True)  # [out, in / 32, 32]
        exponents = arrays["scales"].to(torch.int32) - _BIAS
        scales = torch.ldexp(torch.ones_like(exponents, dtype=torch.float32), exponents)
        return numbers.mul_(scales.unsqueeze(-1)).flatten(1).to(dtype)


def nearest_codes(numbers: Tensor) -> Tensor:
    """The codes [...] uint8 of the nearest 4-bit floats, ties to even."""
    codes = torch.bucketize(numbers.abs(), _bounds(numbers.device)).to(torch.uint8)
    return codes | (numbers < 0).to(torch.uint8) << 3


def _bounds(device: torch.device) -> Tensor:
    """Where one magnitude ends and the next begins, such that a tie goes to the one of even code."""
    magnitudes = torch.tensor(_MAGNITUDES, device=device)
    middles = (magnitudes[1:] + magnitudes[:-1]) / 2
    odd = torch.arange(len(middles), device=device) % 2 == 1
    return torch.where(odd, torch.nextafter(middles, torch.zeros_like(middles)), middles)
