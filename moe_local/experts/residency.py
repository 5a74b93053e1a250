"""Which experts a tier keeps, and in which of its slots. Pure bookkeeping; no tensor, no lock.

Only the thread that runs the forward pass touches it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moe_local.keys import Key
from moe_local.policies.base import Policy

Experts = NDArray[np.int64]


class Decision(NamedTuple):
    """What one forward pass finds and leaves behind."""

    hits: list[int]
    misses: list[int]
    evicted: frozenset[int]  # experts that are not kept: residents, or misses that only pass through
    outside: frozenset[int] = frozenset()  # misses that do not come in at all


class LayerResidency:
    """The experts of one layer that a tier keeps, `capacity` of them at most."""

    def __init__(self, experts: int, capacity: int, policy: Policy) -> None:
        self.capacity = capacity
        self._learns = capacity < experts  # or there is nothing to choose
        self._experts = experts
        self._policy = policy
        self.clear()

    def clear(self) -> None:
        """Forgets everything."""
        self._now = 0
        self._state = np.zeros((self._policy.state_rows(self._experts), self._experts))
        self._resident: NDArray[np.bool_] = np.zeros(self._experts, dtype=bool)

    def __contains__(self, expert: int) -> bool:
        return bool(self._resident[expert])

    @property
    def keeps_all(self) -> bool:
        """Whether none of the layer's experts has ever had to leave, so that nothing is to be learnt of their use."""
        return not self._learns

    def __iter__(self) -> Iterator[int]:
        return iter(np.flatnonzero(self._resident).tolist())

    def access(
        self,
        experts: Sequence[int],
        weights: Sequence[float] | None = None,
        admits: Callable[[int], int] | None = None,
    ) -> Decision:
        """`experts` (distinct) are needed together, with their routers' weights; decides which are kept afterwards.

        Of those there and those that come, the `capacity` that the policy values most. Among equals one that is there
        goes before one that would have to be read. `admits` says how many of so many misses come in, at least those
        that there is room for; of the misses, those that the policy values most. None: all.
        """
        self._now += 1
        keys = np.array(experts, dtype=np.int64)
        if self._learns:
            given = np.zeros(len(keys)) if weights is None else np.array(weights)
            self._policy.on_access(self._state, keys, self._now, given)
        resident = self._resident[keys]
        if resident.all():
            return Decision(list(experts), [], frozenset())
        missing, there = keys[~resident], np.flatnonzero(self._resident)
        if len(missing) + len(there) > self.capacity:
            self._policy.prepare(self._state, keys, self._now)
        coming = missing
        if admits is not None:
            coming = self._best(missing, max(self.capacity - len(there), admits(len(missing))))
        candidates = np.concatenate([coming, there])
        evicted = self._worst(candidates, len(candidates) - self.capacity)
        self._resident[coming] = True
        self._resident[evicted] = False
        outside = frozenset(missing.tolist()).difference(coming.tolist())
        return Decision(keys[resident].tolist(), missing.tolist(), frozenset(evicted.tolist()), outside)

    def _best(self, experts: Experts, most: int) -> Experts:
        """At most so many, in the order they are in, without those that the policy values least."""
        return experts[~np.isin(experts, self._worst(experts, len(experts) - most))]

    def _worst(self, experts: Experts, count: int) -> Experts:
        """So many that the policy values least; none where that is not even one."""
        if count <= 0:
            return experts[:0]
        worth = self._policy.score(self._state, experts, self._now)
        return experts[np.argsort(worth, kind="stable")[:count]]

    def resize(self, capacity: int) -> list[int]:
        """Keeps at most `capacity` experts from now on; those that leave."""
        self.capacity = capacity
        self._learns = self._learns or capacity < self._experts
        there = np.flatnonzero(self._resident)
        evicted: list[int] = self._worst(there, len(there) - capacity).tolist()
        self._resident[evicted] = False
        return evicted


class SlotTable:
    """Which slot each key lies in."""

    def __init__(self, count: int, layers: int) -> None:
        self.limit = count
        self._of: list[dict[int, int]] = [{} for _ in range(layers)]  # of each layer: expert -> slot
        self._free = list(range(count))

    def __getitem__(self, key: Key) -> int:
        """The slot of a key that has one. Raises KeyError otherwise."""
        return self._of[key[0]][key[1]]

    def __contains__(self, key: Key) -> bool:
        return key[1] in self._of[key[0]]

    @property
    def available(self) -> int:
        return len(self._free)

    def allocate(self, key: Key) -> int:
        """A free slot, the key's from now on. Raises IndexError when there is none."""
        slot = self._free.pop()
        self._of[key[0]][key[1]] = slot
        return slot

    def free(self, key: Key) -> None:
        self._free.append(self._of[key[0]].pop(key[1]))

    def retain(self, residents: Sequence[Iterable[int]]) -> None:
        """Frees all slots but those of `residents`, the experts of each layer that stay."""
        self._of = [
            {expert: slots[expert] for expert in experts} for slots, experts in zip(self._of, residents, strict=True)
        ]  # at once: an interrupt must not leave a layer with less
        self._free = self._unused(self.limit)

    def _unused(self, limit: int) -> list[int]:
        """SlotTable below `limit` that no key has."""
        used = {slot for slots in self._of for slot in slots.values()}
        return [slot for slot in range(limit) if slot not in used]

    def shrink(self, limit: int) -> list[tuple[int, int]]:
        """Uses the slots below `limit` from now on; whose bytes must move to which, at once, for that.

        There must be slots enough for the keys that have one.
        """
        free = self._unused(limit)
        moves = []
        for found in self._of:
            for expert, slot in found.items():
                if slot >= limit:
                    found[expert] = free.pop()
                    moves.append((slot, found[expert]))
        self.limit, self._free = limit, free
        return moves
