"""Numbers by byte, from tables."""

from __future__ import annotations

import torch
from torch import Tensor


def look_up(table: Tensor, codes: Tensor) -> Tensor:
    """`table` [256] by `codes` uint8 -> its numbers in the shape of `codes`: several times as fast as indexing."""
    return torch.index_select(table, 0, codes.flatten().int()).view(codes.shape)


def look_up_halves(table: Tensor, codes: Tensor, *, low_first: bool) -> Tensor:
    """`table` [16] float32 by both halves of `codes` uint8 [..., n] -> [..., 2 * n]."""
    slow, quick = table.repeat_interleave(16), table.repeat(16)
    pairs = torch.stack([quick, slow] if low_first else [slow, quick], dim=1)
    whole = pairs.view(torch.int64).flatten()  # the pair of each byte as one element
    return look_up(whole, codes).view(torch.float32)
