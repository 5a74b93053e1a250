"""What becomes of misses: never slower than all of them uploaded, nor than all of them on the CPU, as costs say."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from moe_local.experts.misses import Cheapest, OnCpu

SECONDS = st.floats(1e-7, 1e-1)
COSTS = st.builds(Cheapest, SECONDS, SECONDS, st.dictionaries(st.integers(1, 64), SECONDS, min_size=1, max_size=4))


def _seconds(costs: Cheapest, uploaded: int, misses: int, rows: float) -> float:
    left = misses - uploaded
    return max(uploaded * costs.upload, costs.round_trip + left * costs.at(rows) if left else 0.0)


@given(COSTS, st.integers(0, 64), st.floats(0.1, 4096))
def test_the_split_is_the_fastest(costs: Cheapest, misses: int, rows: float) -> None:
    chosen = costs.uploads(misses, rows)
    assert 0 <= chosen <= misses
    best = _seconds(costs, chosen, misses, rows)
    assert all(best <= _seconds(costs, other, misses, rows) for other in range(misses + 1))


def test_both_work_where_both_are_as_fast() -> None:
    costs = Cheapest(upload=1.0, round_trip=0.5, multiply={1: 1.0})
    assert [costs.uploads(misses, 1) for misses in range(6)] == [0, 1, 1, 2, 2, 3]
    assert costs.uploads(8, 1) == 4
    assert Cheapest(upload=1.0, round_trip=9.0, multiply={1: 1e-9}).uploads(8, 1) == 8
    assert OnCpu().uploads(8, 1) == 0


def test_rows_between_and_beyond_those_measured() -> None:
    costs = Cheapest(upload=1.0, round_trip=0.0, multiply={2: 1.0, 4: 2.0, 8: 8.0})
    assert [costs.at(rows) for rows in (0.5, 2, 3, 4, 6, 8, 16)] == [1.0, 1.0, 1.5, 2.0, 5.0, 8.0, 16.0]
