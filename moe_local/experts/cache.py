"""The expert cache: brings the experts that a layer needs into the device tier, and says where each is.

`transfers.py` tells who may touch a slot, and when.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from time import perf_counter
from typing import NamedTuple

from torch import Tensor

from moe_local.checkpoint.catalog import Catalog
from moe_local.checkpoint.record import Layout
from moe_local.errors import MoeLocalError
from moe_local.experts.capacity import TierCapacity
from moe_local.experts.loader import Loader
from moe_local.experts.mirror import Mirror
from moe_local.experts.mover import BlockingMover, Mover
from moe_local.experts.residency import Decision
from moe_local.experts.tier import Tier
from moe_local.keys import Key
from moe_local.memory.pages import trim
from moe_local.memory.records import RecordReader
from moe_local.memory.slab import Slab
from moe_local.telemetry import Counters, Span


class Ready(NamedTuple):
    """Experts of one layer and one layout, and the slots that they lie in, of the device tier or of the host tier."""

    layout: Layout
    experts: Sequence[int]
    slots: Sequence[int]
    in_ram: bool = False  # the host tier's slots


_NONE = Decision([], [], frozenset())
_LONG = 128  # tokens of a forward pass, beside whose time a few milliseconds are nothing


class ExpertCache:
    """The device tier over an optional host tier over the disk."""

    def __init__(
        self,
        catalog: Catalog,
        reader: RecordReader,
        device: Tier,
        host: Tier | None = None,
        *,
        mover: Mover | None = None,
        reserve: int = 1,
        uploads_ahead: bool = True,
        capacity_for: Callable[[int], TierCapacity] | None = None,
    ) -> None:
        """Over tiers that are empty.

        `mover` copies from the host tier up; None: a blocking one. `reserve` slots are left free by what is read
        ahead, which with `uploads_ahead` goes on to the device tier. `capacity_for` says what that holds in a forward
        pass of so many tokens, if it differs.
        """
        self._counters = Counters.of(len(catalog.layers))
        self._catalog, self._device, self._host = catalog, device, host
        if host is not None and mover is None:
            mover = BlockingMover(host.slab, device.slab)
        self._loader = Loader(
            catalog, reader, device, host, mover, self._counters, reserve=max(1, reserve), uploads_ahead=uploads_ahead
        )
        self._kinds = [layer.kinds for layer in catalog.layers]  # the layouts of each layer
        self._capacity_for = capacity_for
        self._capacity: TierCapacity | None = None  # of the device tier; None: what it was made with
        self._spans: list[Span] | None = None
        self._mirror: Mirror | None = None  # where kernels take slots from one
        self._underway: int | None = None  # the layer of a fetch that has not ended
        self._resizing = self._closed = False

    def fetch(
        self,
        layer: int,
        experts: Sequence[int],
        weights: Sequence[float] | None = None,
        candidates: Callable[[], Iterable[Key]] = tuple,
        admits: Callable[[int], int] | None = None,
    ) -> Iterator[Ready]:
        """Yields `experts` (distinct) with their slots as soon as they are there: all hits, then each arrival.

        What is yielded may be used until more is asked for. `weights` are the router's, for policies that look at
        them. `candidates` is asked once everything has been requested: keys of later layers, the likeliest first, to
        read into spare slots meanwhile. `admits` says how many of so many misses are to come into the device tier,
        where the others can be used in the host tier; None: all. Raises StorageError when a read fails that was
        needed.
        """
        self._recover()
        self._underway = layer
        device, host = self._decide(layer, experts, weights, admits)
        loader = self._loader
        if self._host is None:
            missing = loader.claim(layer, device.misses)
        else:
            missing = loader.claim(layer, host.misses, host.hits, host.evicted, device.outside)
        ready = [*device.hits, *loader.arrived()]
        later: deque[Key] | None = None
        while ready or missing or loader.waiting:
            loader.request(missing)
            if not missing:
                later = deque(candidates()) if later is None else later
                loader.look_ahead(later)
            ready = ready or loader.arrived() or loader.wait()
            if ready:
                began = perf_counter()
                yield from self._located(layer, ready, device.outside)
                self._retire(layer, ready, device.evicted, began)
            ready = []
        loader.look_ahead(deque(candidates()) if later is None else later)
        if self._mirror is not None and (device.misses or device.evicted):
            self._mirror.write([layer])
        self._underway = None

    def _decide(
        self,
        layer: int,
        experts: Sequence[int],
        weights: Sequence[float] | None,
        admits: Callable[[int], int] | None,
    ) -> tuple[Decision, Decision]:
        """What the device tier finds and keeps, and then the host tier of what is missing there."""
        self._loader.settle(layer, keep=admits is None)
        device, host = self._device.access(layer, experts, weights, admits if self._host else None), _NONE
        if self._host is not None and device.misses:
            known = dict(zip(experts, weights or (), strict=False))
            host = self._host.access(layer, device.misses, [known[e] for e in device.misses] if known else None)
        counters = self._counters
        counters.forwards += 1
        counters.layer_hits[layer] += len(device.hits)
        counters.layer_misses[layer] += len(device.misses)
        counters.layer_host_hits[layer] += len(host.hits)
        counters.computed_in_ram += len(device.outside)
        return device, host

    def _located(self, layer: int, experts: Sequence[int], outside: frozenset[int]) -> Iterator[Ready]:
        """Where these are: first those in the device tier, which goes on by itself, then those `outside` of it."""
        if not outside or self._host is None:
            yield from self._alike(layer, experts, self._device)
            return
        yield from self._alike(layer, [expert for expert in experts if expert not in outside], self._device)
        yield from self._alike(layer, [expert for expert in experts if expert in outside], self._host)

    def _alike(self, layer: int, experts: Sequence[int], tier: Tier) -> Iterator[Ready]:
        """Where these are in a tier, those of one layout together."""
        slots, kinds, in_ram = tier.slots, self._kinds[layer], tier is self._host
        layouts = self._catalog.layers[layer].layouts
        for kind in kinds:
            alike = experts if len(kinds) == 1 else [expert for expert in experts if layouts[expert] is kind]
            if alike:
                yield Ready(kind, alike, [slots[layer, expert] for expert in alike], in_ram)

    def _retire(self, layer: int, experts: Sequence[int], evicted: frozenset[int], began: float) -> None:
        """Compute that reads these, since `began`, has been issued: slots of those that are not kept fall free."""
        if self._spans is not None:
            expert = experts[0] if len(experts) == 1 else None
            self._spans.append(Span("compute", layer, expert, began, perf_counter()))
        self._loader.used(layer, experts)
        for expert in evicted.intersection(experts):
            self._device.slots.free((layer, expert))

    def resize_for(self, tokens: int) -> None:
        """Leaves to the next forward pass, of so many tokens, the memory that it needs.

        With nothing moving, the experts that still fit go to the slab's first slots, and the memory of the last ones
        goes back to the system, as does what a long pass has left in pieces: the next would take more beside them.
        """
        if self._capacity_for is None:
            return
        capacity, former = self._capacity_for(tokens), self._capacity
        if former is None or capacity.slots > former.slots or tokens >= _LONG:
            trim()
        if capacity == former:
            return
        self._recover()
        self._capacity, self._resizing = None, True
        self._loader.give_up()
        self._device.resize(capacity)
        if self._mirror is not None:
            self._mirror.write(range(len(self._device.layers)))
        self._capacity, self._resizing = capacity, False

    def hand_over(self, kept: Sequence[int]) -> tuple[Tier | None, list[list[int]]]:
        """Closes all but the host tier, for another cache to go on with.

        -> it, and of each layer what was on the device: as many as `kept` says, those that the policy values most.
        """
        self._recover()
        self._loader.give_up()
        host, best = self._host, self._device.best(kept)
        self._host = None
        self.close()
        return host, best

    def _recover(self) -> None:
        """Empties the layer of a fetch that did not end, or all of them if it was `resize_for` that did not."""
        if self._closed:
            raise MoeLocalError("this expert cache is closed", remedy="load the model again")
        if self._underway is None and not self._resizing:
            return
        self._loader.drain()
        broken = range(len(self._device.layers)) if self._underway is None else [self._underway]
        for tier in filter(None, (self._device, self._host)):
            for layer in broken:
                tier.empty(layer)
        if self._mirror is not None:
            self._mirror.write(broken)
        self._underway, self._resizing = None, False

    def keep_mirror(self, *, zero_copy: bool = False) -> None:
        """From now on mirrors the books on the device; with `zero_copy` its kernels read the host tier."""
        if self._mirror is None:
            self._mirror = Mirror(self._device, self._host if zero_copy else None, self.experts)

    def found_all(self, layer: int, index: Tensor) -> Tensor | None:
        """The slots of all experts of a layer, int32 [experts] on the device, see `Mirror`; None where not all are
        there to stay. The experts that index [T, k] names count as needed then, and need not be fetched.
        """
        if self._mirror is None or self._underway is not None or self._resizing or self._closed:
            return None
        row = self._mirror.found_all(layer, index)
        self._counters.forwards += row is not None
        return row

    def fill(self, layer: int) -> None:
        """Brings all experts of a layer into the host tier, if that keeps them all; no counter tells of it."""
        if self.keeps_in_ram(layer):
            self._bring(layer, range(self.experts[layer]), lambda misses: 0)

    def warm(self, layer: int, experts: Sequence[int]) -> None:
        """Brings in as many of `experts` as the layer keeps, the first first; no counter tells of it."""
        self._bring(layer, experts[: self._device.layers[layer].capacity])

    def _bring(self, layer: int, experts: Sequence[int], admits: Callable[[int], int] | None = None) -> None:
        before = self._counters.snapshot()
        deque(self.fetch(layer, experts, admits=admits), maxlen=0)
        vars(self._counters).update(vars(before))

    def keeps_in_ram(self, layer: int) -> bool:
        """Whether the host tier keeps all experts of a layer."""
        return self._host is not None and self._host.layers[layer].keeps_all

    def watch(self, spans: list[Span] | None) -> None:
        """From now on appends to `spans` what takes time; None ends that."""
        self._spans = spans
        self._loader.watch(spans)

    def residents(self, *, in_ram: bool = False) -> list[list[int]]:
        """The experts of each layer that the device tier keeps, or the host tier `in_ram`: no layers without one."""
        return [list(layer) for layer in tier.layers] if (tier := self._host if in_ram else self._device) else []

    @property
    def counters(self) -> Counters:
        """Running totals. Waits for a device that has counted by itself."""
        if self._mirror is not None:
            self._mirror.count(self._counters)
        return self._counters

    def snapshot(self) -> Counters:
        """The totals as they are now."""
        return self.counters.snapshot()

    @property
    def slab(self) -> Slab:
        """The device tier's memory."""
        return self._device.slab

    @property
    def host_slab(self) -> Slab | None:
        """The host tier's memory; None where there is no such tier."""
        return None if self._host is None else self._host.slab

    @property
    def uses_router_weights(self) -> bool:
        return self._device.uses_router_weights

    @property
    def experts(self) -> list[int]:
        """Of each layer, how many there are."""
        return [layer.experts for layer in self._catalog.layers]

    @property
    def closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        """Waits for what is moving, and frees the slots. Nothing can be fetched afterwards."""
        self._closed = True
        self._loader.close()
        if self._mirror is not None:
            self._mirror.close()
        for tier in filter(None, (self._device, self._host)):
            tier.slab.close()
