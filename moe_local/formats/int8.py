"""int8 with one scale for each row: `weight` [out, in] int8, `scales` [out] bf16."""

from __future__ import annotations

import torch
from torch import Tensor

from moe_local.formats.base import Arrays, Multiply, Packable, Shape, matmul, row_chunks

MANY_ROWS = 48  # from here on decoding the matrix first is faster (measured: benchmarks/kernels.py)


class Int8(Packable):
    """Symmetric, round to nearest."""

    def fits(self, shape: Shape) -> bool:
        return True

    def encode(self, weight: Tensor) -> dict[str, Tensor]:
        chunks = [_fit(rows) for rows in row_chunks(weight)]
        codes, scales = (torch.cat(parts) for parts in zip(*chunks, strict=True))
        return {"weight": codes, "scales": scales}

    def decode(self, arrays: Arrays, shape: Shape, dtype: torch.dtype) -> Tensor:
        weight: Tensor = arrays["weight"].to(dtype) * arrays["scales"].to(dtype)[:, None]
        return weight

    def decodes(self, rows: int) -> bool:
        return rows >= MANY_ROWS

    def bind(self, arrays: Arrays, shape: Shape) -> Multiply:
        weight, scales = arrays["weight"], arrays["scales"]
        if weight.device.type != "cpu":
            return super().bind(arrays, shape)

        def multiply(x: Tensor) -> Tensor:
            if len(x) >= MANY_ROWS:
                return matmul(x, weight.to(x.dtype)) * scales.to(x.dtype)
            y: Tensor = torch.ops.aten._weight_int8pack_mm(x.to(torch.bfloat16).contiguous(), weight, scales)
            return y.to(x.dtype)

        return multiply


def _fit(weight: Tensor) -> tuple[Tensor, Tensor]:
    wide = weight.float()
    scales = (wide.abs().amax(dim=1) / 127).clamp(min=torch.finfo(torch.bfloat16).tiny).to(torch.bfloat16)
    codes = (wide / scales.float()[:, None]).round_().clamp_(-127, 127)
    return codes.to(torch.int8), scales
