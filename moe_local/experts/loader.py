"""Carrying transfers out: reads into the lower tier, uploads from there, and the slots that they need."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from time import perf_counter

from moe_local.checkpoint.catalog import Catalog
from moe_local.experts.mover import Mover
from moe_local.experts.tier import Tier
from moe_local.experts.transfers import State, Transfers
from moe_local.keys import Key
from moe_local.memory.records import Arrival, RecordReader
from moe_local.telemetry import Counters, Span


class Loader:
    """What is moving, and what is to move next; `transfers` tells the rules.

    Reads go into `lower`: the host tier where there is a `mover` up from it, else the device tier itself. What is
    read ahead leaves `reserve` free slots there; what is uploaded ahead, if anything, half of the spare ones above.
    """

    def __init__(
        self,
        catalog: Catalog,
        reader: RecordReader,
        device: Tier,
        host: Tier | None,
        mover: Mover | None,
        counters: Counters,
        *,
        reserve: int,
        uploads_ahead: bool,
    ) -> None:
        self._catalog = catalog
        self._reader = reader
        self._device = device
        self._host = host
        self._mover = mover
        self._lower = host or device
        self._counters = counters
        self._reserve = reserve
        self._uploads_ahead = uploads_ahead
        self._device_reserve = max(1, (device.slots.limit - sum(layer.capacity for layer in device.layers)) // 2)
        self._transfers = Transfers()
        self._sources: dict[Key, bool] = {}  # of uploads not released yet: whether the slot is free afterwards
        self._passing: frozenset[int] = frozenset()  # experts of the layer under way that the host tier does not keep
        self._staying: frozenset[int] = frozenset()  # and those that are used there, not on the device
        self._spans: list[Span] | None = None

    @property
    def waiting(self) -> bool:
        """Whether anything demanded is not in use yet."""
        return self._transfers.awaited

    def settle(self, layer: int | None = None, *, keep: bool = True) -> None:
        """Waits until all uploads of a layer, or of all, have arrived and no longer read the host tier. What of them
        was not demanded is withdrawn, unless it is to be kept.
        """
        began = perf_counter()
        while self._mover is not None and any(layer in (None, key[0]) for key in self._sources):
            if self._transfers.uploading:
                self._uploaded(self._mover.arrived(wait=True), began)
            self._release(wait=True)
            began, waited = perf_counter(), perf_counter() - began
            self._counters.stall_seconds += waited
        for key in [] if keep else self._uploaded_ahead(layer):
            self._withdraw(key)

    def claim(
        self,
        layer: int,
        misses: Sequence[int],
        in_ram: Sequence[int] = (),
        passing: frozenset[int] = frozenset(),
        staying: frozenset[int] = frozenset(),
    ) -> deque[Key]:
        """Demands the `misses` of a layer that are on their way, and those `in_ram`; -> those still to be requested.

        What was prefetched for the layer and is no miss falls free, or will when its reading ends. `passing` are the
        experts that the host tier does not keep, `staying` those that are used there instead of being uploaded.
        """
        self._passing, self._staying = passing, staying
        if not (misses or in_ram or self._transfers):
            return deque()
        for arrival in self._reader.arrivals():
            self._landed(arrival)
        for expert in in_ram:
            if (layer, expert) not in self._transfers:
                self._transfers.found_in_ram((layer, expert))
        wanted = dict.fromkeys((layer, expert) for expert in (*in_ram, *misses))
        for transfer in self._transfers.prefetched(layer):
            if transfer.key not in wanted:
                self._withdraw(transfer.key)
        missing: deque[Key] = deque()
        for key in wanted:
            if key in self._transfers:
                self._demand(key)
            else:
                missing.append(key)
        return missing

    def request(self, missing: deque[Key]) -> None:
        """Begins to read missing keys, in order, while there are free slots for them, and to upload what can be."""
        self._release(wait=False)
        slots = self._lower.slots
        if missing and not slots.available and not self._transfers.awaited:
            self._withdraw_all()  # demand comes first
        while missing and slots.available:
            self._read(missing.popleft(), demanded=True)
        if self._mover is not None and self._host is not None:
            self._upload(self._mover, self._host)

    def look_ahead(self, keys: deque[Key]) -> None:
        """Begins to read what later layers may need, and to upload what of that is in RAM, into free slots but for
        those that demand is left with. Takes from `keys` what was looked at.
        """
        slots = self._lower.slots
        while keys:
            key = keys[0]
            if key not in slots and key not in self._device.slots:
                if slots.available <= self._reserve:
                    break
                self._counters.prefetched += 1
                self._counters.bytes_prefetched += self._size(key)
                self._read(key, demanded=False)
            elif self._uploads_ahead and key not in self._device.slots and key not in self._transfers:
                self._transfers.found_in_ram(key)
            keys.popleft()
        if self._mover is not None and self._host is not None and not self.waiting:
            self._upload_ahead(self._mover, self._host)

    def arrived(self) -> list[int]:
        """The demanded experts that have arrived, all of one layer: compute reads their slots until `used`."""
        return [expert for _, expert in self._transfers.use()]

    def wait(self) -> list[int]:
        """As `arrived`, after waiting until something has, be it of no use: a stall."""
        began = perf_counter()
        if self._mover is not None and self._transfers.uploading:
            self._uploaded(self._mover.arrived(wait=True), began)
        elif self._reader.in_flight:
            self._landed(self._reader.wait(), began)
        else:  # for a slot to read into
            self._release(wait=True)
        for arrival in self._reader.arrivals():  # what has come with it
            self._landed(arrival, began)
        self._counters.reading_seconds = self._reader.busy_seconds
        self._counters.stall_seconds += perf_counter() - began
        return self.arrived()

    def used(self, layer: int, experts: Sequence[int]) -> None:
        """All compute that reads these has been issued, and a CPU's is over."""
        if self._transfers:
            self._transfers.used((layer, expert) for expert in experts)
        if self._staying and self._host is not None:
            for expert in self._staying.intersection(self._passing, experts):
                self._host.slots.free((layer, expert))

    def give_up(self) -> None:
        """Withdraws all that is prefetched, and waits until nothing moves."""
        self._withdraw_all()
        self.drain()

    def watch(self, spans: list[Span] | None) -> None:
        """From now on appends to `spans` what takes time; None ends that."""
        self._spans = self._reader.spans = spans

    def close(self) -> None:
        """Waits until nothing moves; nothing can be moved afterwards."""
        self._reader.close()
        if self._mover is not None:
            self._mover.drain()
        self._transfers.clear()

    def drain(self) -> None:
        """Waits until nothing moves, and forgets what did."""
        self._reader.drain()
        if self._mover is not None:
            self._mover.drain()
        self._transfers.clear()
        self._sources = {}

    def _read(self, key: Key, *, demanded: bool) -> None:
        self._counters.bytes_read += self._size(key)
        target = self._lower.slab.memory(self._lower.slots.allocate(key))
        self._transfers.read(key, demanded=demanded, stays=demanded and key[1] in self._staying)
        self._reader.start(key, self._catalog.layers[key[0]].records[key[1]], target, urgent=demanded)

    def _demand(self, key: Key) -> None:
        found = self._transfers[key]
        if found.state is State.CANCELLED:
            self._counters.bytes_wasted -= self._size(key)
        if found.state in (State.CANCELLED, State.READING):
            self._reader.promote(key)
        self._counters.prefetch_hits += found.was_read
        if found.state is State.THERE and self._host is not None:
            self._counters.uploaded_ahead_hits += 1
            if key[1] in self._passing:
                self._host.slots.free(key)
        self._transfers.demand(key, stays=key[1] in self._staying)

    def _withdraw_all(self) -> None:
        self.settle()
        for transfer in self._transfers.prefetched():
            self._withdraw(transfer.key)

    def _withdraw(self, key: Key) -> None:
        """A prefetched expert, which is not being uploaded, is not wanted any more."""
        found, size = self._transfers[key], self._size(key)
        state = found.state
        if state is State.READING and not self._reader.cancel(key):
            self._transfers.withdraw(key, read_goes_on=True)
            self._counters.bytes_wasted += size
            return
        self._transfers.withdraw(key)
        if state is State.THERE and self._host is not None:
            self._device.slots.free(key)
        if key in self._lower.slots and key[1] not in self._lower.layers[key[0]]:  # the tier's, if that keeps it
            self._lower.slots.free(key)
        if state is State.READING:  # none of it was read
            self._counters.bytes_read -= size
            self._counters.bytes_prefetched -= size
        elif found.was_read:
            self._counters.bytes_wasted += size

    def _landed(self, arrival: Arrival, began: float | None = None) -> None:
        """A read has ended, of something waited for since `began`. Raises its error if the expert is demanded."""
        key, error = arrival
        if error is not None:
            if self._transfers[key].demanded:
                raise error
            self._transfers.withdraw(key)  # it is read again if it is needed
            self._lower.slots.free(key)
            return
        landed = self._transfers.landed(key, in_ram=self._host is not None)
        if landed.state is State.ENDED:
            self._lower.slots.free(key)
        elif landed.usable and began is not None:
            self._note("stall", key, began)

    def _upload(self, mover: Mover, host: Tier) -> None:
        """Uploads what is in RAM and demanded, while the device tier has free slots."""
        began = perf_counter()
        while self._has_slot_above() and (key := self._transfers.next_upload()) is not None:
            self._start(mover, host, key, passes=key[1] in self._passing)
        if self._sources:
            self._uploaded(mover.arrived(wait=False), began)
            self._counters.stall_seconds += perf_counter() - began

    def _upload_ahead(self, mover: Mover, host: Tier) -> None:
        """Uploads what is in RAM and may be demanded soon, and leaves some free slots."""
        while self._uploads_ahead and self._device.slots.available > self._device_reserve:
            if (key := self._transfers.next_upload_ahead()) is None:
                return
            self._start(mover, host, key, passes=False)
            self._counters.uploaded_ahead += 1

    def _start(self, mover: Mover, host: Tier, key: Key, *, passes: bool) -> None:
        """Begins an upload; of an expert that only `passes` through the host tier, whose slot is free afterwards."""
        started = perf_counter()
        self._sources[key] = passes
        mover.start(key, host.slots[key], self._device.slots.allocate(key))
        self._counters.bytes_uploaded += host.slab.slot_size
        self._counters.uploading_seconds += perf_counter() - started
        self._note("upload", key, started)

    def _has_slot_above(self) -> bool:
        """Whether the device tier has a slot for what is demanded, if need be one of what was uploaded ahead."""
        if not self._device.slots.available and self._transfers.to_upload:
            for key in self._uploaded_ahead()[-1:]:
                self._withdraw(key)
        return self._device.slots.available > 0

    def _uploaded_ahead(self, layer: int | None = None) -> list[Key]:
        there = [each.key for each in self._transfers.prefetched(layer) if each.state is State.THERE]
        return there if self._host is not None else []

    def _uploaded(self, keys: Sequence[Key], began: float) -> None:
        for key in keys:
            if self._transfers.uploaded(key).demanded:
                self._note("stall", key, began)

    def _release(self, *, wait: bool) -> None:
        """Slots of the host tier that are not read any more and not kept fall free."""
        if self._mover is None or self._host is None:
            return
        for key in self._mover.released(wait=wait):
            if self._sources.pop(key):
                self._host.slots.free(key)

    def _size(self, key: Key) -> int:
        """Bytes of a record on the disk."""
        return sum(extent.length for extent in self._catalog.layers[key[0]].records[key[1]])

    def _note(self, kind: str, key: Key, began: float) -> None:
        if self._spans is not None:
            self._spans.append(Span(kind, *key, began, perf_counter()))
