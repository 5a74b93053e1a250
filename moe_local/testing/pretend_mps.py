"""A pretend Metal device, on a machine that has none; as `pretend_cuda`.

It knows no float64 and no 8-bit floats, its memory is a part of RAM, and nothing is copied beside what it computes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch

from moe_local.testing.pretend_device import can_pretend, pretending
from moe_local.testing.pretend_memory import Gpu, Memory, Meter
from moe_local.testing.pretend_streams import Streams

__all__ = ["PretendMps", "can_pretend", "pretend_mps"]

_NARROW = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu)


class _Memory(Memory):
    def __init__(self, total: int, largest: int) -> None:
        super().__init__(total, 0)
        self.largest = largest

    def change(self, size: int) -> None:
        if size > self.largest:
            raise RuntimeError(f"Invalid buffer size: {size / 2**30:.2f} GiB")
        try:
            super().change(size)
        except torch.OutOfMemoryError as error:
            raise RuntimeError(f"MPS backend out of memory (MPS allocated: {self.live / 2**30:.2f} GiB)") from error


class PretendMps(Gpu):
    """The device while it is pretended: `watch` it, and read its `memory`."""

    device = torch.device("mps", 0)
    unknown = frozenset({torch.float64, torch.complex128, *_NARROW})

    def __init__(self, total: int, largest: int) -> None:
        meter = Meter()
        super().__init__(_Memory(total, largest), meter, Streams())

    def faked(self) -> dict[str, Any]:
        """What `torch.mps` has while this device is there."""
        memory = self.memory
        return {
            "recommended_max_memory": lambda: memory.total,
            "current_allocated_memory": lambda: memory.live,
            "driver_allocated_memory": lambda: memory.live,
            "synchronize": lambda: self.meter.sync("synchronize"),
            "empty_cache": lambda: None,
        }

    def event(self, device: Any = None, **more: Any) -> Any:
        """`torch.Event`: all is done at once, but for those who wait."""
        return SimpleNamespace(record=lambda: None, synchronize=lambda: self.meter.sync("an event"))


@contextmanager
def pretend_mps(memory: int = 8 << 30, *, largest: int = 4 << 30, macos: int = 15) -> Iterator[PretendMps]:
    """While inside, torch has a Metal device that gives at most `memory` bytes of RAM, and `largest` in one buffer,
    on a macOS of this version. Raises as `pretending`.
    """
    gpu = PretendMps(memory, largest)
    there = {"is_available": lambda: True, "is_macos_or_newer": lambda major, minor: macos >= major}
    with pretending(gpu, {torch.mps: gpu.faked(), torch.backends.mps: there, torch: {"Event": gpu.event}}):
        yield gpu
