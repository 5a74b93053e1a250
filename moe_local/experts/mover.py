"""Copies of whole slots from the host tier to the device tier."""

from __future__ import annotations

from collections import deque
from typing import Protocol

from moe_local.keys import Key
from moe_local.memory.accelerator import Accelerator, CopyStream, Mark
from moe_local.memory.slab import Slab


class Mover(Protocol):
    """The port for copies between memories, which may take their time.

    The caller keeps both slots of an upload as they are: the target until it has arrived, the source until it is
    released.
    """

    def start(self, key: Key, source: int, target: int) -> None:
        """Begins to copy slot `source` of the host tier into slot `target` of the device tier."""

    def arrived(self, *, wait: bool) -> list[Key]:
        """Uploads, each told of once, after which compute that reads the target may be issued.

        With `wait` at least one, where any has been started and not told of.
        """

    def released(self, *, wait: bool) -> list[Key]:
        """Uploads that have arrived and whose source may be written to again, each told of once.

        With `wait` at least one, where any has arrived and not been told of.
        """

    def drain(self) -> None:
        """Waits until nothing is being copied, and forgets what was started."""


class BlockingMover:
    """Copies at once, on the thread that asks: between two parts of RAM, or from RAM in the order of one stream."""

    def __init__(self, host: Slab, device: Slab) -> None:
        self._host = host
        self._device = device
        self._arrived: deque[Key] = deque()
        self._released: deque[Key] = deque()

    def start(self, key: Key, source: int, target: int) -> None:
        self._device[target].copy_(self._host[source])
        self._released.append(key)
        self._arrived.append(key)

    def arrived(self, *, wait: bool) -> list[Key]:
        return _taken(self._arrived)

    def released(self, *, wait: bool) -> list[Key]:
        return _taken(self._released)

    def drain(self) -> None:
        self._arrived.clear()
        self._released.clear()


class StreamMover:
    """Copies in a queue of the device's own, several slots in flight, while it computes; the host waits for none.

    - *ready*: an upload has arrived, for those who issue compute, once compute is told to wait for its mark. Those
      that have ended are told of first; with `wait` the oldest one, and the device waits, not the caller.
    - *released*: its source may be written to once the mark has come, which only the caller can wait for.
    - A target may still be read by compute that was issued before: the queue waits for that before each copy.

    Marks come in the order of the queue, so the oldest is the only one to ask.
    """

    def __init__(self, host: Slab, device: Slab, stream: CopyStream) -> None:
        self._host = host
        self._device = device
        self._stream = stream
        self._started: deque[tuple[Key, Mark]] = deque()
        self._arrived: deque[tuple[Key, Mark]] = deque()  # and told of, the source not released yet

    def start(self, key: Key, source: int, target: int) -> None:
        self._started.append((key, self._stream.copy(self._device[target], self._host[source])))

    def arrived(self, *, wait: bool) -> list[Key]:
        found: list[Key] = []
        while self._started and (self._started[0][1].query() or (wait and not found)):
            key, mark = upload = self._started.popleft()
            self._stream.compute_after(mark)
            self._arrived.append(upload)
            found.append(key)
        return found

    def released(self, *, wait: bool) -> list[Key]:
        found: list[Key] = []
        while self._arrived and (self._arrived[0][1].query() or (wait and not found)):
            key, mark = self._arrived.popleft()
            mark.synchronize()
            found.append(key)
        return found

    def drain(self) -> None:
        self._stream.synchronize()  # all of it: an interrupt may have kept a mark from being written down
        self._started.clear()
        self._arrived.clear()


def mover_to(accelerator: Accelerator, host: Slab, device: Slab) -> Mover:
    """What copies between two slabs, of which `device` is in the memory of this device."""
    stream = accelerator.copy_stream()
    return BlockingMover(host, device) if stream is None else StreamMover(host, device, stream)


def _taken(keys: deque[Key]) -> list[Key]:
    found = list(keys)
    keys.clear()
    return found
