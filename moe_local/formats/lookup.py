"""Numbers by byte, from tables."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


def look_up(table: Tensor, codes: Tensor) -> Tensor:
    """`table` [256] by `codes` uint8 -> its numbers in the shape of `codes`: several times as fast as indexing."""
    return torch.index_select(table, 0, codes.flatten().int()).view(codes.shape)


def look_up_halves(values: tuple[float, ...], codes: Tensor, *, low_first: bool) -> Tensor:
    """16 `values` by both halves of `codes` uint8 [..., n] -> float32 [..., 2 * n]."""
    return look_up(_pairs(values, codes.device, low_first), codes).view(torch.float32)


def widened(codes: Tensor) -> Tensor:
    """A tensor of 8-bit floats in float32: a CPU converts one by one, and some devices know no such type."""
    return look_up(_every(codes.dtype, codes.device), codes.view(torch.uint8))


@lru_cache(maxsize=16)
def _every(dtype: torch.dtype, device: torch.device) -> Tensor:
    """What each byte stands for, float32 [256]."""
    with torch.inference_mode(False):
        return torch.arange(256, dtype=torch.uint8).view(dtype).to(torch.float32).to(device)


@lru_cache(maxsize=64)
def _pairs(values: tuple[float, ...], device: torch.device, low_first: bool) -> Tensor:
    """The pair of numbers that each byte stands for as one element, int64 [256].

    Kept: to make it anew for each matrix, a device would be copied to, and waited for.
    """
    with torch.inference_mode(False):  # whoever comes later may be outside of it
        table = torch.tensor(values, device=device)
        slow, quick = table.repeat_interleave(16), table.repeat(16)
        return torch.stack([quick, slow] if low_first else [slow, quick], dim=1).view(torch.int64).flatten()
