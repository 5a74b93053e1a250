"""Grouping tokens by expert."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from moe_local.runtime.experts import group_by_expert, padded

EXPERTS = 5


@given(st.integers(0, 6), st.integers(1, 4), st.data())
def test_every_choice_is_in_one_group(tokens: int, k: int, data: st.DataObject) -> None:
    """Sentinels (an index of EXPERTS or above) are in none; experts ascend."""
    flat = data.draw(st.lists(st.integers(0, EXPERTS + 1), min_size=tokens * k, max_size=tokens * k))
    groups = group_by_expert(torch.tensor(flat, dtype=torch.long).reshape(tokens, k), EXPERTS)
    assert list(groups) == sorted(set(flat) & set(range(EXPERTS)))
    for expert, places in groups.items():
        assert list(map(int, places)) == [place for place, chosen in enumerate(flat) if chosen == expert]


def test_counts_are_rounded_to_a_few() -> None:
    lengths = {count: len(padded(torch.arange(count))) for count in range(1, 4097)}
    assert all(count <= length < count * 1.5 for count, length in lengths.items())
    assert len(set(lengths.values())) <= 24
    assert padded(torch.tensor([3, 5, 6, 7, 8])).tolist() == [3, 5, 6, 7, 8, 0]
