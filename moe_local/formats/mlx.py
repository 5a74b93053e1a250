"""mlx: integers in groups of columns, a scale and an offset each, packed along each row, as MLX's `quantize` does it.

https://ml-explore.github.io/mlx/build/html/python/_autosummary/mlx.core.quantize.html
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_local.formats.base import Affine, Arrays, HasAffine, Shape

BITS = (2, 3, 4, 5, 6, 8)


class Mlx(HasAffine):
    """`weight` [out, in * bits / 8] uint8, the lowest bits first; `scales` and `biases` [out, in / group]: a number
    is its code times the scale plus the bias.
    """

    def __init__(self, bits: int, group: int) -> None:
        self._bits = bits
        self._group = group

    def decode(self, arrays: Arrays, shape: Shape, dtype: torch.dtype) -> Tensor:
        scales, biases = (arrays[name].to(torch.float32).unsqueeze(-1) for name in ("scales", "biases"))
        codes = unpack_bits(arrays["weight"], self._bits).to(torch.float32)
        return codes.view(shape[0], -1, self._group).mul_(scales).add_(biases).view(shape).to(dtype)

    def affine(self, arrays: Arrays, shape: Shape) -> Affine | None:
        scales, biases = (arrays[name].to(torch.float32) for name in ("scales", "biases"))
        if not (scales.isfinite() & (scales != 0)).all():
            return None  # an offset alone, which zeros cannot say
        return Affine(unpack_bits(arrays["weight"], self._bits), scales, -biases / scales, self._bits)


def unpack_bits(packed: Tensor, bits: int) -> Tensor:
    """uint8 [out, n] -> uint8 [out, n * 8 / bits], numbers one after the other, the lowest bits first."""
    if bits == 8:
        return packed
    each = 8 // bits if 8 % bits == 0 else 8  # numbers in the fewest whole bytes that hold whole numbers
    size = each * bits // 8
    wide = packed.view(len(packed), -1, size).to(torch.int64)
    word = sum((wide[..., byte] << (8 * byte) for byte in range(size)), torch.zeros((), dtype=torch.int64))
    codes = [(word >> (bits * place)) & ((1 << bits) - 1) for place in range(each)]
    return torch.stack(codes, dim=-1).to(torch.uint8).flatten(1)
