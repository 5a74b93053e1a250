"""Small arrays on their way to a device, which the host does not wait for."""

from __future__ import annotations

import torch
from torch import Tensor

from moe_local.memory.accelerator import Accelerator, Mark
from moe_local.memory.slab import Slab

_UNDERWAY = 2  # arrays at a time; before another one the host waits for the oldest


class Sender:
    """Copies arrays of up to `size` bytes into a device's memory, in the order of what it computes.

    Compute that was issued before has read what lay there, compute issued afterwards reads the array. That may change
    at once: it is copied from page-locked RAM of the sender's.
    """

    def __init__(self, device: torch.device, size: int) -> None:
        self._stream = Accelerator(device).copy_stream()
        self._slab: Slab | None = None
        if self._stream is not None:
            pages = -(-size // Slab.ALIGNMENT) * Slab.ALIGNMENT
            self._slab = Slab(_UNDERWAY, pages, torch.device("cpu"))
            self._slab.pin(Accelerator(device))
        self._marks: list[Mark | None] = [None] * _UNDERWAY
        self._turn = 0
        self._interrupted = False  # whether a mark may have been lost

    def send(self, target: Tensor, source: Tensor) -> None:
        """Copies `source`, in RAM, into a contiguous `target` of its shape and type."""
        stream, slab = self._stream, self._slab
        if stream is None or slab is None:
            target.copy_(source)
            return
        if self._interrupted:
            stream.synchronize()
        self._interrupted = True
        turn = self._turn = (self._turn + 1) % _UNDERWAY
        if (last := self._marks[turn]) is not None:
            last.synchronize()
        held = slab[turn][: source.nbytes].view(source.dtype).view(source.shape)
        held.copy_(source)
        mark = self._marks[turn] = stream.copy(target, held)
        stream.compute_after(mark)
        self._interrupted = False

    def close(self) -> None:
        """Waits until all has arrived, and frees the memory."""
        if self._stream is not None and self._slab is not None:
            self._stream.synchronize()
            self._slab.close()
