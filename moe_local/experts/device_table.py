"""What a device knows by itself of the tiers: in which slot each expert lies, and how often experts were found there.

Kernels take slots from the table, so that no router's choice need come to the host. The expert cache alone writes it,
from its books: an expert counts once its record is whole in its slot, from the end of the fetch that brought it until
the fetch that evicts it is over. Slots of the host tier are in it where kernels read page-locked RAM and the tier
keeps all experts of a layer, so that none of them is ever overwritten.

Rows that have changed are copied together, in the order of compute, when a kernel is about to be given one of them:
kernels issued before have read the old rows, and those issued afterwards read the new ones. A slot that falls free is
written to after compute that reads it has been issued (see `transfers`), so that an old row never leads to a new
record.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from moe_local.memory.sender import Sender

_PASSES = 16  # of a layer that are written down before they are added up
NOWHERE = -1  # in the table


def in_ram(slot: int) -> int:
    """A slot of the host tier, in the table."""
    return -2 - slot


class DeviceTable:
    """Of each layer, in which slot of the device tier each expert lies, or `in_ram`, or `NOWHERE`."""

    def __init__(self, device: torch.device, experts: Sequence[int]) -> None:
        """On `device`, of layers of so many `experts`, of which none is there yet."""
        self._experts = experts
        self._written = np.full((len(experts), max(experts)), NOWHERE, dtype=np.int32)
        self._source = torch.from_numpy(self._written)
        with torch.inference_mode(False):  # what is made inside cannot be written to outside
            self._table = self._source.to(device, copy=True)  # [layers, experts of the greatest]
            self._rows = [self._table[layer, :count] for layer, count in enumerate(experts)]
        self._sender = Sender(device, self._written.nbytes)
        self._stale: set[int] = set()  # layers whose rows have not been copied yet
        self._whole = [False] * len(experts)
        self._known = [False] * len(experts)

    def write(self, layer: int, slots: Mapping[int, int], below: Mapping[int, int]) -> None:
        """From now on a layer's experts lie in `slots` of the device tier; others of them in slots `below` it."""
        self._stale.add(layer)
        row = self._written[layer]
        row.fill(NOWHERE)
        row[list(below)] = [in_ram(slot) for slot in below.values()]
        row[list(slots)] = list(slots.values())
        self._whole[layer] = len(slots) == self._experts[layer]
        self._known[layer] = bool((row[: self._experts[layer]] != NOWHERE).all())

    def is_whole(self, layer: int) -> bool:
        """Whether all experts of a layer are in the device tier."""
        return self._whole[layer]

    def knows_all(self, layer: int) -> bool:
        """Whether all experts of a layer are in one of the tiers."""
        return self._known[layer]

    @property
    def all_rows(self) -> Tensor:
        """As they are on the device now, int32 [layers, experts of the greatest]."""
        return self._table

    def row(self, layer: int) -> Tensor:
        """The slots of a layer's experts, int32 [experts], for compute that is issued from now on."""
        if layer in self._stale:
            self._bring()
        return self._rows[layer]

    def _bring(self) -> None:
        rows = slice(min(self._stale), max(self._stale) + 1)
        self._sender.send(self._table[rows], self._source[rows])
        self._stale.clear()

    def close(self) -> None:
        """Frees the memory that rows are copied from."""
        self._sender.close()


class DeviceHits:
    """How many experts were needed, and found in the device tier, where the host never learns which they were."""

    def __init__(self, device: torch.device, experts: Sequence[int], slots: Tensor) -> None:
        """On `device`, of layers of so many `experts`, that are where the rows of `slots` say."""
        self._experts = experts
        self._slots = slots
        self._passes = [0] * len(experts)  # of each layer that are marked and not added up
        self._counted = False  # whether anything was since the last `take`
        with torch.inference_mode(False):
            self._marks = torch.zeros(_PASSES, len(experts), max(experts) + 1, dtype=torch.bool, device=device)
            columns = torch.arange(max(experts) + 1, device=device)
            self._real = columns < torch.tensor(experts).to(device)[:, None]  # the others stand for no expert
            self._sums = torch.zeros(2, len(experts), dtype=torch.int64, device=device)

    def add(self, layer: int, index: Tensor) -> None:
        """The experts of a layer that index [T, k] names were needed, each once."""
        if self._passes[layer] == _PASSES:
            self.add_up()
        marks = self._marks[self._passes[layer], layer]
        self._passes[layer] += 1
        self._counted = True
        marks.scatter_(0, index.reshape(-1).long().clamp(max=self._experts[layer]), True)

    def take(self) -> tuple[list[int], list[int]]:
        """How many were needed of each layer since the last time, and how many of them found.

        Waits for the device where that is any.
        """
        if not self._counted:
            return [0] * len(self._experts), [0] * len(self._experts)
        self.add_up()
        needed, found = self._sums.tolist()
        self._sums.zero_()
        self._counted = False
        return needed, found

    def add_up(self) -> None:
        """By the rows as they are. To be called before they change."""
        if not any(self._passes):
            return
        needed = self._marks & self._real
        self._sums[0] += needed.sum((0, 2))
        self._sums[1] += (needed[..., :-1] & (self._slots >= 0)).sum((0, 2))
        self._marks.zero_()
        self._passes = [0] * len(self._experts)
