"""Policies against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_local.errors import MoeLocalError
from moe_local.policies import POLICIES
from moe_local.policies.base import Policy
from moe_local.policies.belady import BELADY
from moe_local.policies.lfru import HALF_LIFE as LFRU
from moe_local.policies.lfu import HALF_LIFE as LFU

KEYS = 7
USES = st.lists(st.tuples(st.sets(st.integers(0, KEYS - 1), min_size=1), st.floats(0.01, 1)), min_size=1, max_size=40)
Uses = list[tuple[set[int], float]]
ALL = np.arange(KEYS)


def _used(policy: Policy, uses: Uses) -> np.ndarray:
    state = np.zeros((policy.state_rows(KEYS), KEYS))
    for now, (keys, weight) in enumerate(uses, start=1):
        policy.on_access(state, np.array(sorted(keys)), now, np.full(len(keys), weight))
    policy.prepare(state, np.array(sorted(uses[-1][0])), len(uses))
    return state


def _worth(policy: Policy, uses: Uses) -> np.ndarray:
    return policy.score(_used(policy, uses), ALL, len(uses))


def _faded(uses: Uses, key: int, half_life: float) -> float:
    ages = [len(uses) - now for now, (keys, _) in enumerate(uses, start=1) if key in keys]
    return sum(2 ** (-age / half_life) for age in ages)


def _last(uses: Uses, key: int) -> int:
    return max((now for now, (keys, _) in enumerate(uses, start=1) if key in keys), default=0)


@given(USES)
def test_lru_is_worth_its_last_use(uses: Uses) -> None:
    assert _worth(POLICIES["lru"], uses).tolist() == [_last(uses, key) for key in ALL]


@given(USES)
def test_the_others_by_definition(uses: Uses) -> None:
    wanted = [_faded(uses, key, LFU) for key in ALL]
    np.testing.assert_allclose(_worth(POLICIES["lfu"], uses), wanted, atol=1e-9)
    wanted = [_faded(uses, key, LFRU) / (len(uses) - _last(uses, key) + 1) ** 0.5 for key in ALL]
    np.testing.assert_allclose(_worth(POLICIES["lfru"], uses), wanted, atol=1e-9)


@given(USES)
def test_one_key_at_a_time_is_worth_the_same(uses: Uses) -> None:
    """As a compiled replay asks."""
    for policy in (*POLICIES.values(), BELADY):
        state = _used(policy, uses)
        singly = [policy.score(state, key, len(uses)) for key in ALL]
        assert singly == policy.score(state, ALL, len(uses)).tolist()


def test_the_successor_learns_what_follows() -> None:
    """2 follows 0 and 3 follows 1: after a 0, of two keys used alike, the 2 is worth more."""
    uses: Uses = [({key}, 1.0) for key in (0, 2, 1, 3) * 10]
    state = _used(POLICIES["successor"], [*uses, ({0}, 1.0)])
    two, three = POLICIES["successor"].score(state, np.array([2, 3]), len(uses) + 1)
    assert two > 3 * three


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(MoeLocalError, match="choose one of lru"):
        POLICIES.named("fifo")
