"""Policies against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_local.errors import MoeLocalError
from moe_local.policies import BELADY, POLICIES, Policy, get_policy
from moe_local.policies.lfu import HALF_LIFE

KEYS = 7
USES = st.lists(st.tuples(st.sets(st.integers(0, KEYS - 1), min_size=1), st.floats(0.01, 1)), min_size=1, max_size=40)
Uses = list[tuple[set[int], float]]
ALL = np.arange(KEYS)


def _worth(policy: Policy, uses: Uses) -> np.ndarray:
    state = np.zeros((policy.rows, KEYS))
    for now, (keys, weight) in enumerate(uses, start=1):
        policy.use(state, np.array(sorted(keys)), now, weight)
    return policy.worth(state, ALL, len(uses))


def _faded(uses: Uses, key: int, *, weighted: bool) -> float:
    ages = [(len(uses) - now, weight) for now, (keys, weight) in enumerate(uses, start=1) if key in keys]
    return sum((weight if weighted else 1) * 2 ** (-age / HALF_LIFE) for age, weight in ages)


def _last(uses: Uses, key: int) -> int:
    return max((now for now, (keys, _) in enumerate(uses, start=1) if key in keys), default=0)


@given(USES)
def test_lru_is_worth_its_last_use(uses: Uses) -> None:
    assert _worth(POLICIES["lru"], uses).tolist() == [_last(uses, key) for key in ALL]


@given(USES)
def test_the_others_by_definition(uses: Uses) -> None:
    for name, weighted in (("lfu", False), ("weight", True)):
        wanted = [_faded(uses, key, weighted=weighted) for key in ALL]
        np.testing.assert_allclose(_worth(POLICIES[name], uses), wanted, atol=1e-9)
    wanted = [_faded(uses, key, weighted=False) / (len(uses) - _last(uses, key) + 1) for key in ALL]
    np.testing.assert_allclose(_worth(POLICIES["lfru"], uses), wanted, atol=1e-9)


@given(USES)
def test_one_key_at_a_time_is_the_same(uses: Uses) -> None:
    """As a compiled replay calls them."""
    for policy in (*POLICIES.values(), BELADY):
        state = np.zeros((policy.rows, KEYS))
        for now, (keys, weight) in enumerate(uses, start=1):
            for key in keys:
                policy.use(state, key, now, weight)
        singly = [policy.worth(state, key, len(uses)) for key in ALL]
        assert singly == _worth(policy, uses).tolist()


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(MoeLocalError, match="choose one of lru"):
        get_policy("fifo")
