"""Balanced assignment."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.carving import balanced_assignment

gains = st.integers(1, 3).flatmap(
    lambda capacity: st.integers(1, 3).flatmap(
        lambda bins: st.lists(
            st.lists(st.floats(-10, 10), min_size=bins, max_size=bins),
            min_size=bins * capacity,
            max_size=bins * capacity,
        ).map(lambda rows: (np.array(rows), capacity))
    )
)


def total(gain: np.ndarray, bin_of: np.ndarray) -> float:
    return float(gain[np.arange(len(gain)), bin_of].sum())


@given(gains.filter(lambda case: len(case[0]) <= 7))
@settings(max_examples=60, deadline=None)
def test_the_assignment_is_balanced_and_the_best_there_is(case: tuple[np.ndarray, int]) -> None:
    gain, capacity = case
    bins = gain.shape[1]
    bin_of = balanced_assignment.balanced_assignment(gain, capacity)
    assert np.bincount(bin_of, minlength=bins).tolist() == [capacity] * bins
    slots = np.repeat(np.arange(bins), capacity)
    best = max(total(gain, slots[list(order)]) for order in itertools.permutations(range(len(gain))))
    assert total(gain, bin_of) == pytest.approx(best, abs=1e-6)


@given(st.integers(0, 2**32 - 1), st.integers(2, 6), st.integers(2, 12))
@settings(max_examples=40, deadline=None)
def test_no_two_items_would_rather_swap(seed: int, bins: int, capacity: int) -> None:
    gain = np.random.default_rng(seed).normal(size=(bins * capacity, bins))
    bin_of = balanced_assignment.balanced_assignment(gain, capacity)
    mine = gain[np.arange(len(gain)), bin_of]
    swapped = gain[:, bin_of] + gain[:, bin_of].T  # [item, item]: both in the other's bin
    assert (swapped <= mine[:, None] + mine[None, :] + 1e-9).all()
    assert np.bincount(bin_of, minlength=bins).tolist() == [capacity] * bins


def test_items_that_do_not_fill_the_bins_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fill"):
        balanced_assignment.balanced_assignment(np.zeros((5, 2)), 2)
