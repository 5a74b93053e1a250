"""Bytes that are counted while code runs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from moe_local.model.live_bytes import LiveBytes, OnlyOutputs

MIB = 1 << 20


def _numbers(count: int, device: str) -> Tensor:
    return torch.zeros(count, dtype=torch.uint8, device=device)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_is_there_at_once_counts(device: str) -> None:
    known = _numbers(100 * MIB, device)
    with LiveBytes([known]) as counting:
        first = _numbers(MIB, device)
        view = first[: MIB // 2]
        del first  # whose memory the view has
        second = _numbers(2 * MIB, device)
        assert counting.peak == 3 * MIB
        del view
        third = _numbers(MIB, device)
        third.add_(1)
        known.view(-1)
        assert counting.peak == 3 * MIB
        del second, third
        _numbers(3 * MIB, device)
        assert counting.peak == 3 * MIB
        _numbers(4 * MIB, device)
    assert counting.peak == 4 * MIB


def test_scores_are_not_made() -> None:
    query, key = torch.zeros(1, 8, 512, 64, device="meta"), torch.zeros(1, 2, 512, 64, device="meta")
    with OnlyOutputs(), LiveBytes([query, key]) as counting:
        out = F.scaled_dot_product_attention(query, key, value=key[..., :32], enable_gqa=True)
    assert out.shape == (1, 8, 512, 32)
    assert counting.peak == out.numel() * 4


def test_all_may_be_chosen() -> None:
    with LiveBytes([]):
        assert torch.zeros(7, device="meta").nonzero().shape == (7, 1)
    with pytest.raises(NotImplementedError):
        torch.zeros(7, device="meta").nonzero()
