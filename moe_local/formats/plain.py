"""bf16, fp16 and fp32: the numbers themselves, at any strides."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from moe_local.formats.base import Arrays, Packable, Shape


class Plain(Packable):
    """`weight` [out, in]."""

    DTYPE: ClassVar[torch.dtype]

    def encode(self, weight: Tensor) -> dict[str, Tensor]:
        return {"weight": weight.to(self.DTYPE).contiguous()}

    def decode(self, arrays: Arrays, shape: Shape, dtype: torch.dtype) -> Tensor:
        return arrays["weight"].to(dtype)


class Bf16(Plain):
    DTYPE = torch.bfloat16


class Fp16(Plain):
    DTYPE = torch.float16


class Fp32(Plain):
    DTYPE = torch.float32
