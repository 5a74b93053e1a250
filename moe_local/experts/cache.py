"""The expert cache: brings the experts that a layer needs into the device tier, and says when each is ready.

Who may touch a slot, and when
------------------------------
One thread runs the forward pass. It alone decides: all bookkeeping (`LayerResidency`, `SlotTable`) happens on it, so
there are no locks. Reader threads only move bytes from files into the slot they were given.

A slot is in one of three states:

- *free*: nobody reads or writes it;
- *filling*: it belongs to a key, and a reader thread (or an upload on the main thread) writes it; no one else looks;
- *filled*: it belongs to a key, and compute may read it.

What a layer will keep is decided once, when its experts are asked for: so the result does not depend on the order in
which reads end. Experts that leave and are not needed now free their slots at once; those that leave and are needed
(evicted residents, and misses that only pass through) when the compute that used them has been issued. A tier has
spare slots beyond what it keeps, for what passes through: there is always one to go on with, however many experts a
layer asks for. What is read ahead for a later layer waits in spare slots too, and leaves some of them free; when its
layer asks for it, it is there or its reading becomes urgent, and what is not asked for then falls free.

With a host tier, a read fills a host slot; the upload from there to the device slot is issued on the thread, so on
the stream, that also issues the compute: it comes after every kernel that used the slot's former expert.

If a fetch does not come to its end (a read failed, compute raised, Ctrl-C between any two instructions), its layer's
books cannot be trusted. The cache knows which layer that is, and before the next fetch waits for every reader thread
and empties the layer: to read a few experts again is cheap, and there is no state to restore by halves.

Between two forward passes the device tier may be given less room or more (`resize_for`): with nothing in flight, the
experts that still fit move to the slab's first slots, and the memory of the last ones goes back to the system.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import NamedTuple

from moe_local.checkpoint.catalog import Catalog
from moe_local.checkpoint.record import Layout
from moe_local.errors import MoeLocalError
from moe_local.experts.capacity import TierCapacity
from moe_local.experts.residency import Decision, LayerResidency, SlotTable
from moe_local.memory.disk import Arrival, RecordReader
from moe_local.memory.pages import trim
from moe_local.memory.slab import Slab
from moe_local.policies import Key, Policy
from moe_local.telemetry import Counters, Span


class Ready(NamedTuple):
    """Experts of one layer and one layout, and the slots of the device tier that they lie in."""

    layout: Layout
    experts: Sequence[int]
    slots: Sequence[int]


@dataclass(frozen=True)
class Tier:
    """A slab, which key lies in which of its slots, and what is kept of each layer."""

    slab: Slab
    slots: SlotTable
    shares: Sequence[LayerResidency]
    uses_router_weights: bool

    @classmethod
    def make(cls, slab: Slab, experts: Sequence[int], capacities: Sequence[int], policy: Policy) -> Tier:
        """`experts` of each layer, of which `capacities` are kept; the rest of the slab's slots are spare."""
        shares = [LayerResidency(count, most, policy) for count, most in zip(experts, capacities, strict=True)]
        return cls(slab, SlotTable(len(slab), len(shares)), shares, policy.uses_router_weights)

    def access(self, layer: int, experts: Sequence[int], weights: Sequence[float] | None) -> Decision:
        """As `LayerResidency.access`; slots of residents that leave and are not needed fall free."""
        decision = self.shares[layer].access(experts, weights)
        for expert in decision.evicted.difference(experts):
            self.slots.free((layer, expert))
        return decision

    def resize(self, capacity: TierCapacity) -> None:
        """Has this much room from now on, of the slab's. Nothing may be in flight."""
        self.slots.retain(self.shares)
        if capacity.slots > self.slots.limit:  # first: at no moment more is kept than there are slots for
            self.slots.shrink(capacity.slots)
        for layer, (share, kept) in enumerate(zip(self.shares, capacity.kept, strict=True)):
            for expert in share.resize(kept):
                self.slots.free((layer, expert))
        for source, target in self.slots.shrink(capacity.slots):
            self.slab.copy(source, target)

    def empty(self, layer: int) -> None:
        """Forgets a layer, and whatever lies in slots that no layer keeps."""
        self.shares[layer].clear()
        self.slots.retain(self.shares)


_NONE = Decision([], [], frozenset())


class ExpertCache:
    """The device tier over an optional host tier over the disk."""

    def __init__(
        self,
        catalog: Catalog,
        reader: RecordReader,
        device: Tier,
        host: Tier | None = None,
        *,
        reserve: int = 1,
        capacity_for: Callable[[int], TierCapacity] | None = None,
    ) -> None:
        """`capacity_for` says what the device tier holds in a forward pass of so many tokens, if that differs."""
        self.counters = Counters.of(len(catalog.layers))
        self._catalog = catalog
        self._reader = reader
        self._device = device
        self._host = host
        self._landing = host or device  # where reads go
        self._kinds = [layer.kinds for layer in catalog.layers]  # the layouts of each layer
        self._capacity_for = capacity_for
        self._reserve = max(1, reserve)  # free slots that prefetching leaves
        self._uploads: deque[Key] = deque()  # the host tier has them, no device slot is theirs yet
        self._waiting: set[Key] = set()  # in flight, and needed by the layer under way
        self._staged: set[Key] = set()  # prefetched, in flight or there, and not asked for yet
        self._unwanted: set[Key] = set()  # prefetched for nothing, and still in flight
        self._spans: list[Span] | None = None
        self._underway: int | None = None  # the layer of a fetch that has not ended
        self._capacity: TierCapacity | None = None  # of the device tier; None: what it was made with
        self._resizing = False
        self._closed = False

    @property
    def slab(self) -> Slab:
        """The device tier's memory."""
        return self._device.slab

    @property
    def uses_router_weights(self) -> bool:
        """Whether the policy looks at the routers' weights."""
        return self._device.uses_router_weights

    def fetch(
        self,
        layer: int,
        experts: Sequence[int],
        weights: Sequence[float] | None = None,
        ahead: Callable[[], Iterable[Key]] = lambda: (),
    ) -> Iterator[Ready]:
        """Yields `experts` (distinct) with their slots as soon as they are there: all hits, then each arrival.

        What is yielded may be used until more is asked for. `weights` are the router's, for policies that look at
        them. `ahead` is asked once everything has been requested: keys of later layers, the likeliest first, to read
        into spare slots meanwhile. Raises StorageError when a read fails that was needed.
        """
        self._recover()
        self._underway = layer
        device = self._device.access(layer, experts, weights)
        host = self._host_need(layer, device.misses, dict(zip(experts, weights or (), strict=False)))
        self._count(layer, device, host)
        self._uploads.extend((layer, expert) for expert in host.hits)
        missing, prefetched = self._claim(layer, host.misses if self._host else device.misses)
        ready = [*device.hits, *prefetched]
        later: Iterator[Key] | None = None
        while ready or missing or self._waiting or self._uploads:
            self._request(missing)
            if not missing:
                later = iter(ahead()) if later is None else later
                self._look_ahead(later)
            ready = ready or self._next_arrivals(host.evicted)
            if ready:
                began = perf_counter()
                yield from self._located(layer, ready)
                self._note("compute", layer, ready[0] if len(ready) == 1 else None, began)
            for expert in device.evicted.intersection(ready):
                self._device.slots.free((layer, expert))
            ready = []
        self._look_ahead(later or iter(ahead()))
        self._underway = None

    def resize_for(self, tokens: int) -> None:
        """Leaves to the next forward pass, of so many tokens, the memory that it needs."""
        if self._capacity_for is None or (capacity := self._capacity_for(tokens)) == self._capacity:
            return
        self._recover()
        former, self._capacity, self._resizing = self._capacity, None, True
        for key in list(self._staged):
            self._unstage(key)
        self._settle()
        if former is None or capacity.slots > former.slots:
            trim()
        self._device.resize(capacity)
        if former is None or capacity.slots < former.slots:
            self._device.slab.release(capacity.slots)
        self._capacity, self._resizing = capacity, False

    def _settle(self) -> None:
        """Nothing is in flight any more."""
        self._reader.drain()
        self._uploads.clear()
        self._waiting, self._staged, self._unwanted = set(), set(), set()

    def _claim(self, layer: int, misses: Sequence[int]) -> tuple[deque[Key], list[int]]:
        """Misses that are still to be requested, and experts that are ready for compute though they were misses.

        What was prefetched for this layer and is not needed falls free, or will when its reading ends.
        """
        for arrival in self._reader.arrivals():
            self._landed(arrival)
        needed = {(layer, expert) for expert in misses}
        found = needed & (self._staged | self._unwanted)
        for key in [key for key in self._staged if key[0] == layer and key not in found]:
            self._unstage(key)
        ready = []
        for key in found:
            if key in self._unwanted:
                self._unwanted.discard(key)
                self.counters.bytes_wasted -= self._size(key)
            self._staged.discard(key)
            self.counters.prefetch_hits += 1
            if key in self._reader:
                self._reader.hurry(key)
                self._waiting.add(key)
            elif self._host is None:
                ready.append(key[1])
            else:
                self._uploads.append(key)
        return deque((layer, expert) for expert in misses if (layer, expert) not in found), ready

    def _unstage(self, key: Key) -> None:
        self._staged.discard(key)
        size = self._size(key)
        if key not in self._reader:
            self._landing.slots.free(key)
        elif self._reader.cancel(key):
            self._landing.slots.free(key)
            self.counters.bytes_read -= size
            self.counters.bytes_prefetched -= size
            return
        else:
            self._unwanted.add(key)
        self.counters.bytes_wasted += size

    def _landed(self, arrival: Arrival) -> Key | None:
        """Takes note of a record that has come; gives back one that is waited for."""
        key, error = arrival
        if key in self._waiting:
            if error is not None:
                raise error
            self._waiting.discard(key)
            return key
        if key in self._unwanted or error is not None:  # a prefetch that failed is read again if it is needed
            self._unwanted.discard(key)
            self._staged.discard(key)
            self._landing.slots.free(key)
        return None

    def _look_ahead(self, keys: Iterator[Key]) -> None:
        """Starts to read what later layers may need, into free slots but for those that demand is left with."""
        tier = self._landing
        while tier.slots.available > self._reserve:
            key = next(keys, None)
            if key is None:
                return
            if key in tier.slots or key in self._device.slots:
                continue
            self._staged.add(key)
            self.counters.prefetched += 1
            self.counters.bytes_prefetched += self._size(key)
            self._read(key, urgent=False)

    def _host_need(self, layer: int, misses: Sequence[int], weights: Mapping[int, float]) -> Decision:
        if self._host is None or not misses:
            return _NONE
        return self._host.access(layer, misses, [weights[expert] for expert in misses] if weights else None)

    @property
    def experts(self) -> list[int]:
        """Of each layer, how many there are."""
        return [layer.experts for layer in self._catalog.layers]

    @property
    def closed(self) -> bool:
        return self._closed

    def warm(self, layer: int, experts: Sequence[int]) -> None:
        """Brings in as many of `experts` as the layer keeps, the first first; no counter tells of it."""
        before = self.counters.snapshot()
        for _ in self.fetch(layer, experts[: self._device.shares[layer].capacity]):
            pass
        vars(self.counters).update(vars(before))

    def watch(self, spans: list[Span] | None) -> None:
        """From now on appends to `spans` what takes time; None ends that."""
        self._spans = self._reader.spans = spans

    def _note(self, kind: str, layer: int, expert: int | None, began: float) -> None:
        if self._spans is not None:
            self._spans.append(Span(kind, layer, expert, began, perf_counter()))

    def residents(self) -> list[list[int]]:
        """The experts of each layer that the device tier keeps."""
        return [list(share) for share in self._device.shares]

    def _recover(self) -> None:
        """Empties the layer of a fetch that did not end, or all of them if it was `resize_for` that did not, once
        nothing writes to their slots any more.
        """
        if self._closed:
            raise MoeLocalError("this expert cache is closed", remedy="load the model again")
        if self._underway is None and not self._resizing:
            return
        self._settle()
        broken = range(len(self._device.shares)) if self._underway is None else [self._underway]
        for tier in filter(None, (self._device, self._host)):
            for layer in broken:
                tier.empty(layer)
        self._underway, self._resizing = None, False

    def _count(self, layer: int, device: Decision, host: Decision) -> None:
        counters = self.counters
        counters.forwards += 1
        counters.layer_hits[layer] += len(device.hits)
        counters.layer_misses[layer] += len(device.misses)
        counters.layer_host_hits[layer] += len(host.hits)

    def _located(self, layer: int, experts: Sequence[int]) -> Iterator[Ready]:
        """Where these are in the device tier, those of one layout together."""
        slots, kinds = self._device.slots, self._kinds[layer]
        if len(kinds) == 1:
            yield Ready(kinds[0], experts, [slots[layer, expert] for expert in experts])
            return
        layouts = self._catalog.layers[layer].layouts
        for kind in kinds:
            if alike := [expert for expert in experts if layouts[expert] is kind]:
                yield Ready(kind, alike, [slots[layer, expert] for expert in alike])

    def _request(self, missing: deque[Key]) -> None:
        """Starts to read missing keys, in order, while there are free slots for them."""
        if missing and not (self._landing.slots.available or self._waiting or self._uploads):
            for key in list(self._staged):  # demand comes first
                self._unstage(key)
        while missing and self._landing.slots.available:
            key = missing.popleft()
            self._waiting.add(key)
            self._read(key, urgent=True)

    def _read(self, key: Key, *, urgent: bool) -> None:
        tier = self._landing
        self.counters.bytes_read += self._size(key)
        target = tier.slab.memory(tier.slots.allocate(key))
        self._reader.start(key, self._catalog.layers[key[0]].records[key[1]], target, urgent=urgent)

    def _size(self, key: Key) -> int:
        """Bytes of a record on the disk."""
        return sum(extent.length for extent in self._catalog.layers[key[0]].records[key[1]])

    def _next_arrivals(self, evicted_host: frozenset[int]) -> list[int]:
        """The next experts whose bytes are in their device slots, none where something else came. Waits: a stall."""
        began = perf_counter()
        keys = [self._uploads.popleft() if self._uploads else self._landed(self._reader.wait())]
        if self._host is None:  # what has arrived with it is in device slots as well
            keys.extend(self._landed(arrival) for arrival in self._reader.arrivals())
        arrived = [key for key in keys if key is not None]
        self.counters.reading_seconds = self._reader.busy_seconds
        if self._host is not None and arrived:
            self._upload(self._host, arrived[0], last=arrived[0][1] in evicted_host)
        self.counters.stall_seconds += perf_counter() - began
        for key in arrived:
            self._note("stall", *key, began)
        return [expert for _, expert in arrived]

    def _upload(self, tier: Tier, key: Key, *, last: bool) -> None:
        began = perf_counter()
        source = tier.slab[tier.slots[key]]
        self._device.slab[self._device.slots.allocate(key)].copy_(source)
        self.counters.bytes_uploaded += source.numel()
        self.counters.uploading_seconds += perf_counter() - began
        self._note("upload", *key, began)
        if last:
            tier.slots.free(key)

    def close(self) -> None:
        """Waits for the reads in flight, and frees the slots. Nothing can be fetched afterwards."""
        self._closed = True
        self._reader.close()
        for tier in filter(None, (self._device, self._host)):
            tier.slab.close()
