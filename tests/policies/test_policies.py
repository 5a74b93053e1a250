"""Policies against their definitions."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from moe_local.policies import POLICIES

ACCESSES = st.lists(st.integers(0, 6), max_size=60)


@given(ACCESSES, st.integers(1, 5))
def test_lru_against_brute_force(accesses: list[int], capacity: int) -> None:
    policy = POLICIES["lru"]()
    resident: set[int] = set()
    last_use: dict[int, int] = {}
    for now, expert in enumerate(accesses):
        key = (0, expert)
        if expert in resident:
            policy.touch(key)
        else:
            if len(resident) == capacity:
                victim = policy.victim(())
                assert victim == (0, min(resident, key=lambda e: last_use[e]))
                policy.remove(victim)
                resident.remove(victim[1])
            policy.admit(key)
            resident.add(expert)
        last_use[expert] = now


@given(ACCESSES, st.sets(st.integers(0, 6)))
def test_no_policy_offers_a_pinned_key(accesses: list[int], pinned: set[int]) -> None:
    for make in POLICIES.values():
        policy, resident = make(), set()
        for expert in accesses:
            (policy.touch if expert in resident else policy.admit)((0, expert))
            resident.add(expert)
        victim = policy.victim({(0, expert) for expert in pinned})
        assert (victim is None) == (resident <= pinned)
        assert victim is None or victim[1] in resident - pinned
