"""Grouping tokens by expert."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from moe_local.experts.routing import places_by_expert

EXPERTS = 5


@given(st.integers(0, 6), st.integers(1, 4), st.data())
def test_every_choice_is_in_one_group(tokens: int, k: int, data: st.DataObject) -> None:
    """Sentinels (an index of EXPERTS or above) are in none; experts ascend."""
    flat = data.draw(st.lists(st.integers(0, EXPERTS + 1), min_size=tokens * k, max_size=tokens * k))
    groups = places_by_expert(torch.tensor(flat, dtype=torch.long).reshape(tokens, k), EXPERTS)
    assert list(groups) == sorted(set(flat) & set(range(EXPERTS)))
    for expert, places in groups.items():
        assert list(map(int, places)) == [place for place, chosen in enumerate(flat) if chosen == expert]
