"""Transfers: every expert on its way into the device tier, what it may do next, and who owns its slots meanwhile.

Who may touch a slot, and when
------------------------------
One thread runs the forward pass. It alone decides: all bookkeeping (`LayerResidency`, `SlotTable`, `Transfers`)
happens on it, so there are no locks. Others move bytes only: reader threads from a file into the slot they were
given, a mover from a slot of the host tier into one of the device tier.

Reads go into the lower of the two tiers, the host tier where there is one. A transfer is in one state at a time:

- *reading*: reader threads write its slot of the lower tier; nobody else looks at it;
- *cancelled*: the same, but nobody wants it any more. A read that has begun cannot be taken back, so the slot falls
  free when the read ends, unless the expert is demanded before;
- *in RAM*: its slot of the host tier is whole. It waits for a slot of the device tier; one that *stays* there,
  because a CPU multiplies by it as it lies, waits for nothing more;
- *uploading*: the mover reads its slot of the host tier and writes the one of the device tier. Neither may be
  touched: the first until the mover has released it, the second until the upload has arrived. An upload is never
  given up: whoever does not want it any more waits for it to arrive;
- *there*: its slot of the device tier is whole;
- *in use*: compute reads that slot, or the host tier's if it stays there. It is not freed, whatever has been decided
  of the expert, until all compute that reads it has been issued (a CPU's is over by then): until the layer asks for
  more.

Experts that were there all along have no transfer. What a layer keeps is decided once, when its experts are asked
for, so it does not depend on the order in which reads end. Residents that leave and are not needed free their slots
at once; experts that are needed and not kept (evicted residents, misses that only pass through) when they are out of
use.

Demand before prefetch
----------------------
A transfer is *demanded* when the layer under way waits for it, else *prefetched*. Reads of demanded ones go first,
and a prefetched one that becomes demanded overtakes. Prefetching takes only slots beyond those that demand is left
with, in either tier, and uploads only while nothing demanded is on its way. What the host tier keeps is prefetched to
the device tier, too: its slot there stays the tier's, whatever becomes of the transfer.

Before a layer's experts are asked for, its uploads have arrived and released their sources, so that what the host
tier gives up then is read by nobody.

Why nothing waits for ever
--------------------------
The forward pass waits for three things only. A read ends by itself, whole or with an error. An upload ends by itself,
and then its source is released. A free slot of the tier that is read into: while anything demanded is being read,
uploaded or used, its end frees a slot or hands on an expert; when nothing is and no slot is free, all that is
prefetched is withdrawn first, and a tier has at least one slot more than it keeps experts, or keeps all of them. The
same spare slot serves uploads: an expert that passes through frees its slot when it is out of use, before the next
one is waited for; and what was uploaded ahead makes room for what is demanded.

After an interruption
---------------------
If a fetch does not come to its end (a read failed, compute raised, Ctrl-C between any two instructions), its layer's
books cannot be trusted. The next fetch waits until nobody moves bytes, forgets all transfers and empties the layer:
to read a few experts again is cheap, and there is no state to restore by halves.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, auto

from moe_local.keys import Key


class State(Enum):
    """Where a transfer is; see the module."""

    READING = auto()
    CANCELLED = auto()
    IN_RAM = auto()
    UPLOADING = auto()
    THERE = auto()
    IN_USE = auto()
    ENDED = auto()


STEPS: dict[State, frozenset[State]] = {
    State.READING: frozenset({State.IN_RAM, State.THERE, State.CANCELLED, State.ENDED}),
    State.CANCELLED: frozenset({State.READING, State.ENDED}),
    State.IN_RAM: frozenset({State.UPLOADING, State.IN_USE, State.ENDED}),
    State.UPLOADING: frozenset({State.THERE}),
    State.THERE: frozenset({State.IN_USE, State.ENDED}),
    State.IN_USE: frozenset({State.ENDED}),
    State.ENDED: frozenset(),
}
_AWAITED = frozenset({State.READING, State.IN_RAM, State.UPLOADING, State.THERE})


@dataclass(eq=False)
class Transfer:
    """One expert on its way."""

    key: Key
    state: State
    demanded: bool
    stays: bool = False  # in the host tier
    was_read: bool = True  # or the host tier had it

    @property
    def usable(self) -> bool:
        """Whether its slot is whole in the tier that it is to be used in."""
        return self.state is State.THERE or (self.state is State.IN_RAM and self.stays)

    def step(self, to: State) -> None:
        """Raises RuntimeError for a step that is not allowed."""
        if to not in STEPS[self.state]:
            raise RuntimeError(f"expert {self.key} cannot go from {self.state.name} to {to.name}")
        self.state = to


class Transfers:
    """All transfers that have not ended, by key; those to upload and those to use in the order in which they came."""

    def __init__(self) -> None:
        self._by_key: dict[Key, Transfer] = {}
        self._to_upload: deque[Transfer] = deque()
        self._to_use: list[Transfer] = []

    def __len__(self) -> int:
        return len(self._by_key)

    def __contains__(self, key: Key) -> bool:
        return key in self._by_key

    def __getitem__(self, key: Key) -> Transfer:
        """Raises KeyError where there is none."""
        return self._by_key[key]

    @property
    def awaited(self) -> bool:
        """Whether anything demanded is not in use yet."""
        return any(each.demanded and each.state in _AWAITED for each in self._by_key.values())

    @property
    def uploading(self) -> bool:
        """Whether an upload has not arrived yet."""
        return any(each.state is State.UPLOADING for each in self._by_key.values())

    def prefetched(self, layer: int | None = None) -> list[Transfer]:
        """Those of a layer, or of all, that were read ahead, are still wanted, and have not been demanded."""
        return [
            each
            for each in self._by_key.values()
            if not each.demanded and each.state is not State.CANCELLED and layer in (None, each.key[0])
        ]

    def read(self, key: Key, *, demanded: bool, stays: bool = False) -> None:
        """A read of the expert begins."""
        self._by_key[key] = Transfer(key, State.READING, demanded, stays)

    def found_in_ram(self, key: Key) -> None:
        """The host tier keeps an expert that is to be demanded, at once or perhaps."""
        self._by_key[key] = Transfer(key, State.IN_RAM, demanded=False, was_read=False)

    def demand(self, key: Key, *, stays: bool = False) -> Transfer:
        """A prefetched transfer, cancelled or not, is demanded from now on."""
        found = self._by_key[key]
        if found.state is State.CANCELLED:
            found.step(State.READING)
        found.demanded, found.stays = True, stays
        self._queue(found)
        return found

    def landed(self, key: Key, *, in_ram: bool) -> Transfer:
        """The read has ended well, in the host tier if `in_ram`. A cancelled transfer ends."""
        found = self._by_key[key]
        if found.state is State.CANCELLED:
            return self._end(found)
        found.step(State.IN_RAM if in_ram else State.THERE)
        self._queue(found)
        return found

    def withdraw(self, key: Key, *, read_goes_on: bool = False) -> None:
        """A prefetched transfer is not wanted any more, or has failed; it ends with the read where that goes on."""
        found = self._by_key[key]
        if read_goes_on:
            found.step(State.CANCELLED)
        else:
            self._end(found)

    @property
    def to_upload(self) -> bool:
        """Whether anything that is demanded waits for its upload to begin."""
        return bool(self._to_upload)

    def next_upload(self) -> Key | None:
        """The next demanded expert that is in RAM; its upload begins."""
        if not self._to_upload:
            return None
        found = self._to_upload.popleft()
        found.step(State.UPLOADING)
        return found.key

    def next_upload_ahead(self) -> Key | None:
        """The next expert that is in RAM and not demanded; its upload begins."""
        for found in self._by_key.values():
            if found.state is State.IN_RAM and not found.demanded:
                found.step(State.UPLOADING)
                return found.key
        return None

    def uploaded(self, key: Key) -> Transfer:
        """The upload has arrived."""
        found = self._by_key[key]
        found.step(State.THERE)
        self._queue(found)
        return found

    def use(self) -> list[Key]:
        """Those that are demanded and where they are to be used: compute reads them from now on."""
        using, self._to_use = self._to_use, []
        for each in using:
            each.step(State.IN_USE)
        return [each.key for each in using]

    def used(self, keys: Iterable[Key]) -> None:
        """All compute that reads these has been issued: what had a transfer is now there like any other."""
        for key in keys:
            if (found := self._by_key.get(key)) is not None:
                self._end(found)

    def clear(self) -> None:
        """Forgets all. Nothing may be moving any more."""
        self._by_key, self._to_upload, self._to_use = {}, deque(), []

    def _queue(self, transfer: Transfer) -> None:
        if not transfer.demanded:
            return
        if transfer.usable:
            self._to_use.append(transfer)
        elif transfer.state is State.IN_RAM:
            self._to_upload.append(transfer)

    def _end(self, transfer: Transfer) -> Transfer:
        transfer.step(State.ENDED)
        del self._by_key[transfer.key]
        return transfer
