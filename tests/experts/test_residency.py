"""Shares against a plain model of what is kept; slots as a state machine."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from moe_local.experts.residency import LayerResidency, SlotTable
from moe_local.policies import POLICIES
from moe_local.policies.lru import LRU

EXPERTS = 8
NEEDED = st.lists(st.lists(st.integers(0, EXPERTS - 1), unique=True, min_size=1), max_size=40)


@given(NEEDED, st.integers(0, EXPERTS), st.sampled_from(sorted(POLICIES)))
def test_a_share_is_never_over_its_capacity_and_says_what_changes(
    needed: list[list[int]], capacity: int, policy: str
) -> None:
    residency = LayerResidency(EXPERTS, capacity, POLICIES[policy])
    resident: set[int] = set()
    for experts in needed:
        decision = residency.access(experts, [0.5] * len(experts))
        assert decision.hits == [e for e in experts if e in resident]
        assert decision.misses == [e for e in experts if e not in resident]
        candidates = resident | set(experts)
        assert decision.evicted <= candidates
        resident = candidates - decision.evicted
        assert set(residency) == resident
        assert len(resident) == min(capacity, len(candidates)) or not decision.misses


@given(NEEDED, st.integers(0, EXPERTS), st.sampled_from(sorted(POLICIES)), st.data())
def test_of_misses_only_so_many_come_in_and_those_the_best(
    needed: list[list[int]], capacity: int, policy: str, data: st.DataObject
) -> None:
    residency = LayerResidency(EXPERTS, capacity, POLICIES[policy])
    resident: set[int] = set()
    for experts in needed:
        most = data.draw(st.integers(0, len(experts)))
        decision = residency.access(experts, [0.5] * len(experts), lambda misses, most=most: min(misses, most))
        assert decision.misses == [e for e in experts if e not in resident]
        assert decision.outside <= set(decision.misses)
        coming = set(decision.misses) - decision.outside
        assert len(coming) == min(len(decision.misses), max(most, capacity - len(resident)))
        assert decision.evicted <= resident | coming
        resident = (resident | coming) - decision.evicted
        assert set(residency) == resident and len(resident) <= capacity


def test_misses_that_were_used_more_come_in_first() -> None:
    residency = LayerResidency(EXPERTS, 2, POLICIES["lfu"])
    for experts in ([0, 1], [0, 1], [0, 1], [3], [3, 4], [5]):
        residency.access(experts, admits=lambda misses: 0)
    assert set(residency) == {0, 1}
    decision = residency.access([4, 3, 5], admits=lambda misses: 1)
    assert (decision.misses, decision.outside) == ([4, 3, 5], {4, 5})


@given(NEEDED, st.integers(1, EXPERTS))
def test_lru_keeps_what_was_needed_last(needed: list[list[int]], capacity: int) -> None:
    residency = LayerResidency(EXPERTS, capacity, LRU)
    last_use: dict[int, int] = {}
    for now, experts in enumerate(needed):
        residency.access(experts)
        last_use |= dict.fromkeys(experts, now)
        kept = [last_use[e] for e in residency]
        gone = [last_use[e] for e in last_use if e not in residency]
        assert not gone or min(kept) >= max(gone)


def test_experts_that_are_there_are_not_replaced_by_equals() -> None:
    residency = LayerResidency(EXPERTS, 3, LRU)
    residency.access([2, 5, 7])
    decision = residency.access(range(EXPERTS))
    assert set(residency) == {2, 5, 7}
    assert decision.evicted == set(decision.misses)


@given(NEEDED, st.integers(1, EXPERTS), st.integers(0, EXPERTS))
def test_a_share_that_shrinks_loses_what_it_values_least(needed: list[list[int]], capacity: int, less: int) -> None:
    residency = LayerResidency(EXPERTS, capacity, LRU)
    last_use: dict[int, int] = {}
    for now, experts in enumerate(needed):
        residency.access(experts)
        last_use |= dict.fromkeys(experts, now)
    before = set(residency)
    evicted = residency.resize(less)
    assert set(residency) == before - set(evicted)
    assert len(set(residency)) == min(less, len(before))
    kept = [last_use[e] for e in residency]
    assert not kept or capacity == EXPERTS or max((last_use[e] for e in evicted), default=-1) <= min(kept)


class SlotMachine(RuleBasedStateMachine):
    COUNT = 4
    KEYS = st.tuples(st.integers(0, 1), st.integers(0, 5))

    def __init__(self) -> None:
        super().__init__()
        self.slots = SlotTable(self.COUNT, 2)
        self.limit = self.COUNT
        self.held: dict[tuple[int, int], int] = {}

    @precondition(lambda self: len(self.held) < self.limit)
    @rule(key=KEYS)
    def take(self, key: tuple[int, int]) -> None:
        if key not in self.held:
            self.held[key] = self.slots.allocate(key)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.held)))
        self.slots.free(key)
        del self.held[key]

    @rule(layer=st.integers(0, 1), least=st.integers(0, 6))
    def keep(self, layer: int, least: int) -> None:
        self.held = {key: slot for key, slot in self.held.items() if key[0] != layer or key[1] >= least}
        self.slots.retain([[expert for at, expert in self.held if at == number] for number in range(2)])

    @rule(data=st.data())
    def confine(self, data: st.DataObject) -> None:
        self.limit = data.draw(st.integers(len(self.held), self.COUNT))
        moves = dict(self.slots.shrink(self.limit))
        assert set(moves) == {slot for slot in self.held.values() if slot >= self.limit}
        self.held = {key: moves.get(slot, slot) for key, slot in self.held.items()}

    @invariant()
    def every_key_has_its_own(self) -> None:
        assert all(self.slots[key] == slot for key, slot in self.held.items())
        assert len(set(self.held.values())) == len(self.held)
        assert all(slot < self.limit for slot in self.held.values())
        assert self.slots.available == self.limit - len(self.held)


TestSlots = SlotMachine.TestCase
