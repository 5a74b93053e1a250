"""bf16, fp16 and fp32: the numbers themselves, at any strides."""

from __future__ import annotations

import torch
from torch import Tensor

from moe_local.formats.base import Arrays, Multiply, Packable, Shape, matmul


class Plain(Packable):
    """`weight` [out, in]."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype

    def fits(self, shape: Shape) -> bool:
        return True

    def encode(self, weight: Tensor) -> dict[str, Tensor]:
        return {"weight": weight.to(self._dtype).contiguous()}

    def decode(self, arrays: Arrays, shape: Shape, dtype: torch.dtype) -> Tensor:
        return arrays["weight"].to(dtype)

    def bind(self, arrays: Arrays, shape: Shape) -> Multiply:
        weight = arrays["weight"]
        return lambda x: matmul(x, weight.to(x.dtype))
