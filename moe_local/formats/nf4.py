"""nf4: 4-bit numbers of a fixed table times a scale for each block of the flattened matrix, as bitsandbytes has it.

https://arxiv.org/abs/2305.14314, https://github.com/bitsandbytes-foundation/bitsandbytes
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from moe_local.formats.base import Arrays, Packable, Shape
from moe_local.formats.lookup import look_up, look_up_halves

TABLES = {
    "nf4": (
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ),
    "fp4": tuple(sign * value / 192 for sign in (1, -1) for value in (0, 1, 128, 192, 64, 96, 32, 48)),
}
_TINY = 1e-38  # bitsandbytes' least scale


class Nf4(Packable):
    """`weight` uint8, two numbers of the row-major flattened matrix a byte, the high half first; `absmax`, a float32
    for each `block` of them.

    With `nested`, which is only read, `absmax` is uint8: each stands for a number of `nested_map` [256], times the
    `nested_absmax` that so many share, plus `offset`: JSON's text of it, uint8, ending with its object.
    """

    def __init__(self, block: int = 64, table: str = "nf4", nested: int = 0) -> None:
        self.block = block
        self.table = table
        self.nested = nested

    def encode(self, weight: Tensor) -> dict[str, Tensor]:
        """The very bytes that bitsandbytes gives."""
        table = torch.tensor(TABLES[self.table], device=weight.device)
        order = torch.argsort(table)
        bounds = (table[order[:-1]] + table[order[1:]]) / 2
        blocks = weight.to(torch.float32).reshape(-1, self.block)
        absmax = blocks.abs().amax(dim=1)
        scaled = (blocks * (1.0 / absmax.clamp(min=_TINY)).unsqueeze(1)).clamp(-1, 1).flatten()
        codes = order[torch.bucketize(scaled, bounds)].to(torch.uint8)
        return {"weight": codes[::2] << 4 | codes[1::2], "absmax": absmax}

    def decode(self, arrays: Arrays, shape: Shape, dtype: torch.dtype) -> Tensor:
        packed = arrays["weight"]
        numbers = look_up_halves(TABLES[self.table], packed.flatten(), low_first=False)[: math.prod(shape)]
        scales = self._scales(arrays)
        if len(numbers) == len(scales) * self.block:
            numbers.view(-1, self.block).mul_(scales.unsqueeze(1))
        else:
            numbers.mul_(scales.repeat_interleave(self.block)[: len(numbers)])
        return numbers.view(shape).to(dtype)

    def _scales(self, arrays: Arrays) -> Tensor:
        if not self.nested:
            return arrays["absmax"]
        codes = arrays["absmax"]
        scales = arrays["nested_absmax"].repeat_interleave(self.nested)[: len(codes)]
        return look_up(arrays["nested_map"], codes) * scales + read_offset(bytes(arrays["offset"].tolist()))


def read_offset(text: bytes) -> float:
    """The number at the end of a JSON object: its last one's value."""
    return float(text.rpartition(b":")[2].rstrip(b" }"))
