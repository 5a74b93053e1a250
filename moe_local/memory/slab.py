"""Preallocated memory, cut into equal slots."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from moe_local.memory.accelerator import Accelerator, on_cpu
from moe_local.memory.pages import allocate, release

_PIECE = 512 << 20  # bytes that are page-locked at a time


class Slab:
    """`slots` buffers of `slot_size` bytes on one device, aligned to 4096 bytes on a CPU.

    The memory is taken when the slab is made (on a CPU page by page, as slots are first written) and never grows. It
    is one buffer, or several where a device has none that are so large.
    """

    ALIGNMENT = 4096

    def __init__(self, slots: int, slot_size: int, device: torch.device) -> None:
        self.slot_size = slot_size
        largest = Accelerator(device).largest_buffer
        self._each = max(1, slots if largest is None else min(slots, largest // slot_size))  # slots of a buffer
        counts = [min(self._each, slots - first) for first in range(0, slots, self._each)] or [0]
        self._buffers = [_buffer(count, slot_size, device) for count in counts]
        self._start = self._buffers[0].data_ptr()
        self._memory: dict[int, memoryview] = {}
        self._pins: list[tuple[Accelerator, int]] = []  # by whom and from which address on it is page-locked
        self.is_pinned = False  # the whole of it

    def __len__(self) -> int:
        return sum(len(buffer) for buffer in self._buffers)

    def __getitem__(self, slot: int) -> Tensor:
        """The slot's bytes, uint8 [slot_size]."""
        return self._buffers[slot // self._each][slot % self._each]

    def memory(self, slot: int) -> memoryview:
        """The slot's bytes for reading files into. Host memory only."""
        view = self._memory.get(slot)
        if view is None:
            view = self._memory[slot] = self[slot].numpy().data
        return view

    @property
    def device(self) -> torch.device:
        return self._buffers[0].device

    @property
    def memory_of_all(self) -> Tensor:
        """The bytes of all slots, uint8 [slots, slot_size], of a slab of one buffer; empty once it is closed."""
        (buffer,) = self._buffers
        return buffer

    def addresses(self, slots: Sequence[int]) -> list[int]:
        """Where the bytes of some slots begin, in a slab of one buffer."""
        start, size = self._start, self.slot_size
        return [start + slot * size for slot in slots]

    def copy(self, source: int, target: int) -> None:
        """Copies the bytes of one slot to another."""
        self[target].copy_(self[source])

    def release(self, first: int) -> None:
        """Gives the memory of slot `first` and those after it back to the system; it comes again when written to.

        Host memory only.
        """
        release(self.memory_of_all[first:])

    def pin(self, accelerator: Accelerator) -> int:
        """Page-locks the slab for copies to a device, piece by piece until one is refused; -> bytes that are.

        The system's own way (torch's `pin_memory`) would round the whole up to a power of two, and locks all or none.
        No slot is in two pieces, which a device could not copy as one.
        """
        together = self.ALIGNMENT // math.gcd(self.ALIGNMENT, self.slot_size) * self.slot_size
        piece = max(1, _PIECE // together) * together
        for at in range(0, self.nbytes, piece):
            if not accelerator.pin(self._start + at, min(piece, self.nbytes - at)):
                return at
            self._pins.append((accelerator, self._start + at))
        self.is_pinned = True
        return self.nbytes

    def close(self) -> None:
        """Frees the memory, once nobody else holds a part of it."""
        if self._pins:
            self._pins[0][0].synchronize()  # its kernels may be reading here
        self.is_pinned = False
        while self._pins:
            accelerator, address = self._pins.pop()
            accelerator.unpin(address)
        self._memory.clear()
        self._buffers = [self._buffers[0].new_empty(0, self.slot_size)]

    @property
    def nbytes(self) -> int:
        return sum(buffer.numel() for buffer in self._buffers)


def _buffer(slots: int, slot_size: int, device: torch.device) -> Tensor:
    """uint8 [slots, slot_size]."""
    size = slots * slot_size
    if not on_cpu(device):
        return torch.empty(slots, slot_size, dtype=torch.uint8, device=device)
    raw = allocate(size + Slab.ALIGNMENT)
    start = -raw.data_ptr() % Slab.ALIGNMENT
    return raw[start : start + size].view(slots, slot_size)
