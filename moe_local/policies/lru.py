"""Least recently used."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container

from moe_local.policies.base import Key


class LRU:
    """Evicts the key that has gone unused for longest."""

    def __init__(self) -> None:
        self._order: OrderedDict[Key, None] = OrderedDict()  # oldest first

    def admit(self, key: Key) -> None:
        self._order[key] = None

    def touch(self, key: Key) -> None:
        self._order.move_to_end(key)

    def remove(self, key: Key) -> None:
        del self._order[key]

    def victim(self, pinned: Container[Key]) -> Key | None:
        return next((key for key in self._order if key not in pinned), None)
