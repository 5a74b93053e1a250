"""What an eviction policy is: an order over keys, nothing else."""

from __future__ import annotations

from collections.abc import Container
from typing import Protocol

Key = tuple[int, int]  # (layer, expert)


class EvictionPolicy(Protocol):
    """Decides which resident key leaves first. Never sees a tensor, a slot or a clock."""

    def admit(self, key: Key) -> None:
        """`key` has become resident."""

    def touch(self, key: Key) -> None:
        """Resident `key` was needed again."""

    def remove(self, key: Key) -> None:
        """`key` is resident no longer."""

    def victim(self, pinned: Container[Key]) -> Key | None:
        """The key to evict next that is not pinned, or None if every resident key is."""
