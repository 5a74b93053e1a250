"""Sliding windows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_local.errors import MoeLocalError
from moe_local.evaluation.windows import windows


@given(st.data())
def test_every_token_but_the_first_is_scored_once(data: st.DataObject) -> None:
    tokens = data.draw(st.integers(2, 2000))
    window = data.draw(st.integers(2, 600))
    stride = data.draw(st.integers(1, window - 1))
    found = windows(tokens, window, stride)
    assert [token for part in found for token in range(part.scored, part.end)] == list(range(1, tokens))
    for part in found:
        assert 0 <= part.begin < part.scored < part.end <= part.begin + window
        assert part.begin == 0 or part.scored - part.begin >= window - stride


@pytest.mark.parametrize(("tokens", "window", "stride"), [(1, 8, 4), (9, 1, 1), (9, 8, 0), (9, 8, 8), (9, 8, -1)])
def test_what_cannot_be_is_refused(tokens: int, window: int, stride: int) -> None:
    with pytest.raises(MoeLocalError):
        windows(tokens, window, stride)
