"""int8 with one scale for each row: `weight` [out, in] int8, `scales` [out] bf16."""

from __future__ import annotations

import torch
from torch import Tensor

from moe_local.formats.base import Arrays, Packable, Shape, row_chunks


class Int8(Packable):
    """Symmetric, round to nearest."""

    def encode(self, weight: Tensor) -> dict[str, Tensor]:
        chunks = [_fit(rows) for rows in row_chunks(weight)]
        codes, scales = (torch.cat(parts) for parts in zip(*chunks, strict=True))
        return {"weight": codes, "scales": scales}

    def decode(self, arrays: Arrays, shape: Shape, dtype: torch.dtype) -> Tensor:
        weight: Tensor = arrays["weight"].to(dtype) * arrays["scales"].to(dtype)[:, None]
        return weight


def _fit(weight: Tensor) -> tuple[Tensor, Tensor]:
    wide = weight.float()
    scales = (wide.abs().amax(dim=1) / 127).clamp(min=torch.finfo(torch.bfloat16).tiny).to(torch.bfloat16)
    codes = (wide / scales.float()[:, None]).round_().clamp_(-127, 127)
    return codes.to(torch.int8), scales
