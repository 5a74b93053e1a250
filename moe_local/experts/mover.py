"""Copies of whole slots from the host tier to the device tier."""

from __future__ import annotations

from collections import deque
from typing import Protocol

from moe_local.keys import Key
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


def _taken(keys: deque[Key]) -> list[Key]:
    found = list(keys)
    keys.clear()
    return found
