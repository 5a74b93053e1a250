"""The expert cache: brings the experts that a layer needs into the device tier, and says when each is ready.

Who may touch a slot, and when
------------------------------
One thread runs the forward pass. It alone decides: all bookkeeping (`Share`) happens on it, so there are no locks.
Reader threads only move bytes from files into the slot they were given.

A slot is in one of three states:

- *free or evictable*: nobody reads or writes it;
- *filling*: its key is pinned, a reader thread (or an upload on the main thread) writes it; no one else looks;
- *in use*: its key is pinned and compute reads it.

A pin is taken before a slot starts to fill and is released after the compute that needed it has been issued. Evicting
skips pinned keys, so a slot is never overwritten while it is filling or in use. With a host tier, a read fills a host
slot; the upload from there to the device slot is issued on the thread, and so on the stream, that also issues the
compute, so it comes after every kernel that used the slot's former expert.

If a fetch does not come to its end (a read failed, compute raised, Ctrl-C between any two instructions), its layer's
books cannot be trusted. The cache knows which layer that is, and before the next fetch waits for every reader thread
and empties the layer: to read a few experts again is cheap, and there is no state to restore by halves.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter

from moe_local.checkpoint.catalog import Catalog
from moe_local.errors import MoeLocalError
from moe_local.formats import Expert, open_expert
from moe_local.memory.disk import RecordReader
from moe_local.memory.residency import Share, make_shares
from moe_local.memory.slab import Slab
from moe_local.policies import EvictionPolicy, Key
from moe_local.telemetry import Counters


@dataclass(frozen=True)
class Tier:
    """A slab and one share of its slots for each layer."""

    slab: Slab
    shares: Sequence[Share]

    @classmethod
    def make(cls, slab: Slab, capacities: Sequence[int], policy: Callable[[], EvictionPolicy]) -> Tier:
        return cls(slab, make_shares(capacities, policy))


class ExpertCache:
    """The device tier over an optional host tier over the disk."""

    def __init__(self, catalog: Catalog, reader: RecordReader, device: Tier, host: Tier | None = None) -> None:
        self.counters = Counters()
        self._catalog = catalog
        self._reader = reader
        self._device = device
        self._host = host
        self._uploads: deque[Key] = deque()  # host tier has them, device slot is theirs, copy not yet issued
        self._opened: dict[int, Expert] = {}  # device slot -> views; a slot never changes its layer
        self._underway: int | None = None  # the layer of a fetch that has not ended
        self._closed = False

    def fetch(self, layer: int, experts: Sequence[int]) -> Iterator[list[tuple[int, Expert]]]:
        """Yields `experts` (distinct) with their weights as soon as they are there: all hits, then each arrival.

        Their weights may be used until more are asked for. The number of experts may exceed the layer's
        slots: the rest follow as slots fall free. Raises StorageError when a read fails.
        """
        self._recover()
        self._underway = layer
        share = self._device.shares[layer]
        keys = [(layer, expert) for expert in experts]
        ready = [key for key in keys if key in share]
        missing = deque(key for key in keys if key not in share)
        self._count(len(ready), len(missing))
        for key in ready:
            share.pin(key)
        self._request(missing)
        while ready or missing or self._pending:
            ready = ready or [self._next_arrival()]
            yield [(key[1], self._open(layer, share.slot(key))) for key in ready]
            for key in ready:
                share.unpin(key)
            ready = []
            self._request(missing)
        self._underway = None

    def _recover(self) -> None:
        """Empties the layer of a fetch that did not end, once nothing writes to its slots any more."""
        if self._closed:
            raise MoeLocalError("this expert cache is closed", remedy="load the model again")
        if self._underway is None:
            return
        self._reader.drain()
        self._uploads.clear()
        for tier in filter(None, (self._device, self._host)):
            tier.shares[self._underway].clear()
        self._underway = None

    @property
    def _pending(self) -> int:
        return self._reader.in_flight + len(self._uploads)

    def _count(self, hits: int, misses: int) -> None:
        self.counters.forwards += 1
        self.counters.hits += hits
        self.counters.misses += misses

    def _open(self, layer: int, slot: int) -> Expert:
        expert = self._opened.get(slot)
        if expert is None:
            expert = open_expert(self._catalog.layers[layer].layout, self._device.slab[slot])
            self._opened[slot] = expert
        return expert

    def _request(self, missing: deque[Key]) -> None:
        """Starts to bring in missing keys, in order, until no slot can be had."""
        while missing and self._start(missing[0]):
            missing.popleft()

    def _start(self, key: Key) -> bool:
        layer = key[0]
        share = self._device.shares[layer]
        slot = share.admit(key)
        if slot is None:
            return False
        if self._host is None:
            self._read(key, self._device.slab.memory(slot))
            return True
        host = self._host.shares[layer]
        if key in host:
            host.pin(key)
            self.counters.host_hits += 1
            self._uploads.append(key)
            return True
        host_slot = host.admit(key)
        if host_slot is None:
            share.drop(key)
            return False
        self._read(key, self._host.slab.memory(host_slot))
        return True

    def _read(self, key: Key, target: memoryview) -> None:
        layer, expert = key
        extents = self._catalog.layers[layer].records[expert]
        self.counters.bytes_read += sum(extent.length for extent in extents)
        self._reader.start(key, extents, target)

    def _next_arrival(self) -> Key:
        """The next key whose bytes are in its device slot. Waits; the wait is a stall."""
        began = perf_counter()
        key = self._uploads.popleft() if self._uploads else self._reader.next_arrival()
        if self._host is not None:
            self._upload(self._host, key)
        self.counters.stall_seconds += perf_counter() - began
        return key

    def _upload(self, tier: Tier, key: Key) -> None:
        layer = key[0]
        host = tier.shares[layer]
        source = tier.slab[host.slot(key)]
        self._device.slab[self._device.shares[layer].slot(key)].copy_(source)
        self.counters.bytes_uploaded += source.numel()
        host.unpin(key)

    def close(self) -> None:
        """Waits for the reads in flight. Nothing can be fetched afterwards."""
        self._closed = True
        self._reader.close()
