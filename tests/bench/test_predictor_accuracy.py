"""How right predictors are on traces, against counting by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_local.bench.predictor_accuracy import choose, foresee
from moe_local.bench.trace import Trace
from moe_local.errors import MoeLocalError


def _trace(ids: object, experts: int, forwards: list[int] | None = None) -> Trace:
    array = np.array(ids, dtype=np.uint8)
    steps = None if forwards is None else np.array(forwards, dtype=np.int32)
    return Trace(array, np.array([len(array)], dtype=np.int32), ("one",), experts, forwards=steps)


def test_what_always_follows_is_foreseen() -> None:
    """Expert e is followed by e + 1: after the first round all is known but what no count says."""
    ids = [[[e, e + 1], [e + 1, e + 2]] for e in (0, 2, 4)] * 20
    half, whole, twice = foresee(_trace(ids, 8), ["transitions"])
    assert (half.depth, whole.depth, twice.depth) == (1, 2, 4)
    assert 0.45 < half.recall <= 0.5 < 0.9 < whole.recall <= 1
    assert half.precision > 0.9 and whole.precision == pytest.approx(whole.recall)
    assert twice.precision <= 0.5


def test_what_followed_once_is_foreseen_until_it_does_not() -> None:
    ids = [[[0, 1], [5, 6]]] * 10 + [[[0, 1], [2, 3]]]
    _, whole, _ = foresee(_trace(ids, 8), ["transitions"])
    assert whole.recall == pytest.approx(9 / 11)  # not the first, not the last


def test_prompts_are_not_counted() -> None:
    ids = [[[0, 1], [5, 6]]] * 12
    _, alone, _ = foresee(_trace(ids, 8, forwards=[1] * 12), ["transitions"])
    _, prompt, _ = foresee(_trace(ids, 8, forwards=[8, 1, 1, 1, 1]), ["transitions"])
    assert (alone.recall, prompt.recall) == (pytest.approx(11 / 12), pytest.approx(3 / 4))
    with pytest.raises(MoeLocalError, match="no token"):
        foresee(_trace(ids, 8, forwards=[12]), ["transitions"])


@given(
    st.lists(
        st.lists(st.lists(st.integers(0, 8), min_size=2, max_size=2), min_size=3, max_size=3), min_size=1, max_size=9
    )
)
def test_shares_are_shares_whatever_the_trace(ids: list[list[list[int]]]) -> None:
    trace = _trace(ids, 8)
    for found in foresee(trace, choose(["all"], trace)):
        assert 0 <= found.recall <= 1 and 0 <= found.precision <= 1


def test_what_a_trace_cannot_tell_is_said() -> None:
    trace = _trace([[[0, 1], [2, 3]]], 8)
    assert choose(["all"], trace) == ["transitions", "blend"]
    with pytest.raises(MoeLocalError, match="router needs the model's hidden states"):
        choose(["router"], trace)
    with pytest.raises(MoeLocalError, match="no predictor 'oracle'"):
        choose(["oracle"], trace)
