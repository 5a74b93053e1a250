"""Streams and events of a pretend device, which deliver late.

Compute runs at once. A copy that is asked for in another stream, from page-locked RAM and without blocking, fills its
target with bytes that are no numbers; the right ones come when somebody waits for them, or at a random later step.
Raises AssertionError where a copy may overtake compute that uses its target, or its source was written to meanwhile.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

_POISON = 0xFF  # a byte: as bf16, float16 and float32 no number
_STEP = 0.02  # how often an operation finds that a copy has ended
_ENDED = 0.3  # and who asks an event


@dataclass(eq=False)
class _Copy:
    target: Tensor
    source: Tensor
    content: Tensor  # what the source held when the copy began

    def deliver(self) -> None:
        assert self.source.equal(self.content), "the source of a copy was written to before its event"
        self.target.copy_(self.source)


class Streams:
    """All streams of a device; the page-locked ranges of RAM that it copies from without blocking."""

    def __init__(self, seed: int = 0) -> None:
        self.pinned: dict[int, int] = {}  # address: bytes
        self.used = False  # whether anybody has asked for a second stream
        self.in_flight_at_most = 0  # copies
        self.waits = 0  # times that the host waited for an event
        self._random = random.Random(seed)
        self.compute = Stream(self)
        self.compute.computes = True
        self.current = self.compute
        self._all: list[Stream] = []

    def open(self, stream: Stream) -> None:
        """Makes it one of this device's, beside the one that computes."""
        self.used = True
        Stream.__init__(stream, self)
        self._all.append(stream)

    @contextmanager
    def using(self, stream: Stream) -> Iterator[None]:
        """Inside, what is asked for goes to `stream`."""
        former, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = former

    def is_pinned(self, addresses: tuple[int, int]) -> bool:
        """Whether a range of addresses lies in one page-locked piece: a device cannot copy from two as one."""
        begin, end = addresses
        return any(start <= begin and end <= start + size for start, size in self.pinned.items())

    def copy(self, target: Tensor, source: Tensor, touched: Mapping[tuple[int, int], int]) -> None:
        """Begins a copy in the stream under way; compute used parts of the target when so much was launched."""
        if self.current.computes:
            target.copy_(source)
            return
        begin, end = target.data_ptr(), target.data_ptr() + target.nbytes
        last = max((when for (low, high), when in touched.items() if low < end and begin < high), default=-1)
        assert last < 0 or last <= self.current.after, "a copy may overtake compute that uses its target"
        target.view(-1).view(torch.uint8).fill_(_POISON)
        self.current.pending.append(_Copy(target, source, source.clone()))
        self.in_flight_at_most = max(self.in_flight_at_most, self.in_flight)

    def step(self) -> None:
        """Time goes by: now and then a copy ends."""
        for stream in self._all:
            if stream.pending and self._random.random() < _STEP:
                stream.advance(stream.done + 1)

    def look(self, stream: Stream) -> None:
        """Somebody asks how far a stream is."""
        if stream.pending and self._random.random() < _ENDED:
            stream.advance(stream.done + self._random.randint(1, len(stream.pending)))

    def finish(self) -> None:
        """Everything is done."""
        for stream in self._all:
            stream.advance(stream.given)

    @property
    def in_flight(self) -> int:
        """Copies that have not been delivered."""
        return sum(len(each.pending) for each in self._all)


class Stream:
    """What torch calls so, of a device."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self.pending: list[_Copy] = []
        self.done = 0  # copies that have been delivered
        self.computes = False  # in it, beside copies that go on by themselves
        self.launched = -1  # the number of the last launch here
        self.after = -1  # and of the last one that this stream has waited for

    @property
    def given(self) -> int:
        """Copies that were ever asked for."""
        return self.done + len(self.pending)

    def advance(self, to: int) -> None:
        """Delivers in order until so many copies of this stream are done."""
        while self.done < min(to, self.done + len(self.pending)):
            self.pending.pop(0).deliver()
            self.done += 1

    def wait_stream(self, other: Stream) -> None:
        self.after = max(self.after, other.after, other.launched)
        if not other.computes:
            other.advance(other.given)

    def wait_event(self, event: Event) -> None:
        event.reach()

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event(self._streams)
        event.record(self)
        return event

    def synchronize(self) -> None:
        self._streams.waits += 1
        self.advance(self.given)


class Event:
    """What torch calls so: a moment in a stream."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self._stream: Stream | None = None
        self._at = 0

    def record(self, stream: Stream | None = None) -> None:
        self._stream = stream or self._streams.current
        self._at = self._stream.given

    def reach(self) -> None:
        """What came before it is done."""
        if self._stream is not None:
            self._stream.advance(self._at)

    def query(self) -> bool:
        if self._stream is None:
            return True
        self._streams.look(self._stream)
        return self._stream.done >= self._at

    def wait(self, stream: Stream | None = None) -> None:
        self.reach()

    def synchronize(self) -> None:
        self._streams.waits += 1
        self.reach()
