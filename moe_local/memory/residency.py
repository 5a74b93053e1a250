"""Which key sits in which slot of a tier, and which slots are in use. Pure bookkeeping; no tensor, no lock.

Only the thread that runs the forward pass touches it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from moe_local.policies import EvictionPolicy, Key


class Share:
    """The slots that one layer may use, and the keys in them."""

    def __init__(self, slots: Sequence[int], policy: Callable[[], EvictionPolicy]) -> None:
        self._all = slots
        self._make_policy = policy
        self.capacity = len(slots)
        self.clear()

    def clear(self) -> None:
        """Empties every slot, whatever was in it and whatever was pinned."""
        self._policy = self._make_policy()
        self._free = list(reversed(self._all))
        self._slots: dict[Key, int] = {}
        self._pins: dict[Key, int] = {}

    def __contains__(self, key: Key) -> bool:
        return key in self._slots

    def __iter__(self) -> Iterator[Key]:
        return iter(self._slots)

    def slot(self, key: Key) -> int:
        """The slot of a resident key. Raises KeyError otherwise."""
        return self._slots[key]

    def pin(self, key: Key) -> int:
        """Marks a resident key as needed again and in use; returns its slot. Balance with `unpin`."""
        self._policy.touch(key)
        self._pins[key] = self._pins.get(key, 0) + 1
        return self._slots[key]

    def unpin(self, key: Key) -> None:
        left = self._pins[key] - 1
        if left:
            self._pins[key] = left
        else:
            del self._pins[key]

    def admit(self, key: Key) -> int | None:
        """Gives an absent key a slot, evicting if need be, and pins it; None while every slot is in use."""
        if not self._free:
            victim = self._policy.victim(self._pins)
            if victim is None:
                return None
            self._evict(victim)
        slot = self._free.pop()
        self._slots[key] = slot
        self._policy.admit(key)
        self._pins[key] = 1
        return slot

    def drop(self, key: Key) -> None:
        """Takes the slot of a pinned key back before anything was written to it."""
        del self._pins[key]
        self._evict(key)

    def _evict(self, key: Key) -> None:
        self._free.append(self._slots.pop(key))
        self._policy.remove(key)


def make_shares(capacities: Sequence[int], policy: Callable[[], EvictionPolicy]) -> list[Share]:
    """One share a layer over consecutive slots: layer 0 gets the first `capacities[0]` slots, and so on."""
    shares, start = [], 0
    for capacity in capacities:
        shares.append(Share(range(start, start + capacity), policy))
        start += capacity
    return shares
