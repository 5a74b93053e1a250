"""Intervals of ratios: how often they are right, and when there is none."""

from __future__ import annotations

import numpy as np
import pytest

from moe_local.bench.paired import LEAST, ratio_interval


@pytest.mark.parametrize("ratio", [1.0, 1.05, 0.5])
def test_they_hold_the_ratio_about_as_often_as_they_say(ratio: float) -> None:
    """Under load that halves the speed of some pairs. Bootstraps of few pairs are a little narrow."""
    rng, held = np.random.default_rng(1), 0
    for _ in range(300):
        load = rng.choice([1.0, 0.5], 10) * rng.uniform(0.8, 1.2, 10)
        before, after = (load * rng.normal(1, 0.02, 10) for _ in range(2))
        low, high = ratio_interval(before.tolist(), (after * ratio).tolist()) or (0, 0)
        held += low <= ratio <= high
        assert high / low < 1.1
    assert 0.85 < held / 300 < 0.99


def test_where_there_is_none() -> None:
    few = [1.0] * (LEAST - 1)
    assert ratio_interval(few, few) is None
    assert ratio_interval([1.0] * LEAST, [2.0] * LEAST) == pytest.approx((2, 2))
    assert ratio_interval([1.0] * LEAST, [0.0] * LEAST) is None
    assert ratio_interval([], []) is None
