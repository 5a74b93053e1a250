"""Transfers as a state machine: only allowed steps, and everything that begins comes to its end."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from moe_local.experts.transfers import STEPS, State, Transfer, Transfers
from moe_local.keys import Key

KEYS = st.tuples(st.integers(0, 1), st.integers(0, 4))
UNDER_WAY = (State.READING, State.IN_RAM, State.UPLOADING, State.THERE)


class TransferMachine(RuleBasedStateMachine):
    """Drives transfers by what a disk, a mover and a forward pass may do, beside a plain dict of what they are."""

    @initialize(in_ram=st.booleans())
    def begin(self, in_ram: bool) -> None:
        self.in_ram = in_ram  # whether there is a host tier, that reads go into
        self.transfers = Transfers()
        self.states: dict[Key, State] = {}
        self.demanded: set[Key] = set()
        self.staying: set[Key] = set()  # used in the host tier

    def _in(self, *states: State, demanded: bool | None = None) -> list[Key]:
        return sorted(
            key for key, state in self.states.items() if state in states and demanded in (None, key in self.demanded)
        )

    def _draw(self, data: st.DataObject, *states: State, demanded: bool | None = None) -> Key:
        return data.draw(st.sampled_from(self._in(*states, demanded=demanded)))

    def _end(self, key: Key) -> None:
        del self.states[key]
        self.demanded.discard(key)
        self.staying.discard(key)

    def _demand(self, key: Key, stays: bool) -> None:
        self.demanded.add(key)
        self.staying |= {key} if stays else set()

    @rule(key=KEYS, demanded=st.booleans(), stays=st.booleans())
    def read(self, key: Key, demanded: bool, stays: bool) -> None:
        if key not in self.states:
            stays = stays and demanded and self.in_ram
            self.transfers.read(key, demanded=demanded, stays=stays)
            self.states[key] = State.READING
            if demanded:
                self._demand(key, stays)

    @precondition(lambda self: self.in_ram)
    @rule(key=KEYS)
    def find_in_ram(self, key: Key) -> None:
        if key not in self.states:
            self.transfers.found_in_ram(key)
            self.states[key] = State.IN_RAM

    @precondition(lambda self: self._in(*UNDER_WAY, State.CANCELLED, demanded=False))
    @rule(data=st.data(), stays=st.booleans())
    def demand(self, data: st.DataObject, stays: bool) -> None:
        key = self._draw(data, *UNDER_WAY, State.CANCELLED, demanded=False)
        stays = stays and self.in_ram
        self.transfers.demand(key, stays=stays)
        self._demand(key, stays)
        if self.states[key] is State.CANCELLED:
            self.states[key] = State.READING

    @precondition(lambda self: self._in(State.READING, State.CANCELLED))
    @rule(data=st.data())
    def land(self, data: st.DataObject) -> None:
        key = self._draw(data, State.READING, State.CANCELLED)
        landed = self.transfers.landed(key, in_ram=self.in_ram)
        if self.states[key] is State.CANCELLED:
            assert landed.state is State.ENDED
            self._end(key)
        else:
            self.states[key] = State.IN_RAM if self.in_ram else State.THERE
            assert landed.state is self.states[key]

    @precondition(lambda self: self._in(State.READING, demanded=False))
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        key = self._draw(data, State.READING, demanded=False)
        self.transfers.withdraw(key, read_goes_on=True)
        self.states[key] = State.CANCELLED

    @precondition(lambda self: self._in(State.READING, State.IN_RAM, State.THERE, demanded=False))
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        key = self._draw(data, State.READING, State.IN_RAM, State.THERE, demanded=False)
        self.transfers.withdraw(key)
        self._end(key)

    def _to_upload(self) -> set[Key]:
        return set(self._in(State.IN_RAM, demanded=True)) - self.staying

    @rule()
    def upload(self) -> None:
        assert self.transfers.to_upload == bool(self._to_upload())
        key = self.transfers.next_upload()
        assert (key is None) == (not self._to_upload())
        if key is not None:
            assert key in self._to_upload()
            self.states[key] = State.UPLOADING

    @rule()
    def upload_ahead(self) -> None:
        ahead = self._in(State.IN_RAM, demanded=False)
        key = self.transfers.next_upload_ahead()
        assert key in (ahead or [None])
        if key is not None:
            self.states[key] = State.UPLOADING

    @precondition(lambda self: self._in(State.UPLOADING))
    @rule(data=st.data())
    def arrive(self, data: st.DataObject) -> None:
        key = self._draw(data, State.UPLOADING)
        assert self.transfers.uploaded(key).demanded == (key in self.demanded)
        self.states[key] = State.THERE

    @rule()
    def use(self) -> None:
        using = self.transfers.use()
        in_ram = self.staying.intersection(self._in(State.IN_RAM, demanded=True))
        assert sorted(using) == sorted([*self._in(State.THERE, demanded=True), *in_ram])
        self.states |= dict.fromkeys(using, State.IN_USE)

    @rule()
    def retire(self) -> None:
        using = self._in(State.IN_USE)
        self.transfers.used([*using, (7, 7)])  # which was there all along
        for key in using:
            self._end(key)

    @precondition(lambda self: self.states)
    @rule(data=st.data(), to=st.sampled_from(State))
    def refuse(self, data: st.DataObject, to: State) -> None:
        key = data.draw(st.sampled_from(sorted(self.states)))
        if to not in STEPS[self.states[key]]:
            with pytest.raises(RuntimeError, match=f"cannot go from {self.states[key].name} to {to.name}"):
                self.transfers[key].step(to)

    @invariant()
    def they_are_as_the_dict_says(self) -> None:
        assert len(self.transfers) == len(self.states)
        assert all(self.transfers[key].state is state for key, state in self.states.items())
        assert self.transfers.awaited == bool(self._in(*UNDER_WAY, demanded=True))
        assert self.transfers.uploading == bool(self._in(State.UPLOADING))
        ahead = self._in(*UNDER_WAY, demanded=False)
        assert sorted(each.key for each in self.transfers.prefetched()) == ahead
        assert sorted(each.key for each in self.transfers.prefetched(0)) == [key for key in ahead if key[0] == 0]

    def teardown(self) -> None:
        """When reads and uploads end, and compute goes on, nothing is left waiting."""
        if not hasattr(self, "transfers"):
            return
        for key in self._in(State.READING, State.CANCELLED):
            self.transfers.landed(key, in_ram=self.in_ram)
        while self.transfers.next_upload() is not None:
            pass
        for key in [key for key in self.states if key in self.transfers]:
            if self.transfers[key].state is State.UPLOADING:
                self.transfers.uploaded(key)
        self.transfers.use()
        self.transfers.used(self.demanded)
        assert not self.transfers.awaited
        assert len(self.transfers) == len(self.transfers.prefetched())
        for each in self.transfers.prefetched():
            self.transfers.withdraw(each.key)
        assert len(self.transfers) == 0


TestTransfers = TransferMachine.TestCase


def test_every_state_leads_to_the_end() -> None:
    for state in State:
        reached, found = {state}, {state}
        while found:
            found = {after for each in found for after in STEPS[each]} - reached
            reached |= found
        assert State.ENDED in reached
    with pytest.raises(RuntimeError, match=r"expert \(1, 2\) cannot go from ENDED to READING"):
        Transfer((1, 2), State.ENDED, demanded=False).step(State.READING)
