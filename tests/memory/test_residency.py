"""Shares as a state machine against a plain model of slots and pins."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from moe_local.memory.residency import Share, make_shares
from moe_local.policies import LRU

CAPACITY = 3
KEYS = st.tuples(st.just(0), st.integers(0, 5))


class ShareMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.share = Share(range(CAPACITY), LRU)
        self.pins: dict[tuple[int, int], int] = {}

    @rule(key=KEYS)
    def need(self, key: tuple[int, int]) -> None:
        held = {k: self.share.slot(k) for k in self.pins}
        if key in self.share:
            self.share.pin(key)
            self.pins[key] = self.pins.get(key, 0) + 1
        else:
            slot = self.share.admit(key)
            assert (slot is None) == (len(self.pins) == CAPACITY)
            if slot is not None:
                assert slot not in held.values()
                self.pins[key] = 1
        assert all(self.share.slot(k) == slot for k, slot in held.items())

    @precondition(lambda self: self.pins)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.pins)))
        self.share.unpin(key)
        self.pins[key] -= 1
        self.pins = {k: n for k, n in self.pins.items() if n}

    @precondition(lambda self: 1 in self.pins.values())
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(k for k, n in self.pins.items() if n == 1)))
        self.share.drop(key)
        del self.pins[key]
        assert key not in self.share

    @rule()
    def clear(self) -> None:
        self.share.clear()
        self.pins = {}
        assert not list(self.share)

    @invariant()
    def slots_are_distinct_and_pins_resident(self) -> None:
        slots = [self.share.slot(key) for key in self.share]
        assert len(set(slots)) == len(slots) <= CAPACITY
        assert all(key in self.share for key in self.pins)


TestShare = ShareMachine.TestCase


def test_shares_do_not_overlap() -> None:
    shares = make_shares([2, 1, 3], LRU)
    slots = [share.admit((layer, e)) for layer, share in enumerate(shares) for e in range(share.capacity)]
    assert slots == list(range(6))
