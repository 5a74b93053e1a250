"""A pretend CUDA device on a machine that has none: what it is asked, it computes on the CPU and counts.

    with pretend_cuda(memory=8 << 30) as gpu, load(model, Options(device="cuda")) as engine:
        with gpu.watch() as seen:
            engine.generate("Why?", Sampling(max_new_tokens=1))
        assert seen.syncs < 10, seen.told()

What it cannot tell is how fast anything is, and how a device rounds.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch

from moe_local.testing.pretend_device import can_pretend, pretending
from moe_local.testing.pretend_graphs import PretendGraph
from moe_local.testing.pretend_memory import Gpu, Memory, Meter, Tally
from moe_local.testing.pretend_streams import Event, Stream, Streams
from moe_local.testing.pretend_tensor import PretendTensor

__all__ = ["PretendCuda", "PretendTensor", "Tally", "can_pretend", "pretend_cuda"]

NAME = "Pretend GPU"
_REFUSED = 2  # cudaErrorMemoryAllocation


class PretendCuda(Gpu):
    """The device while it is pretended: `watch` it, and read its `memory`."""

    def __init__(self, total: int, others: int, capability: tuple[int, int], pinnable: int | None, seed: int) -> None:
        meter = Meter()
        super().__init__(Memory(total, others), meter, Streams(seed))
        self.capability = capability
        self.pinnable = pinnable  # bytes of RAM that can be page-locked; None: all
        self.free_said: int | None = None  # what is told to be free, where that is not so any more

    @property
    def pinned_bytes(self) -> int:
        """Of RAM that are page-locked now."""
        return sum(self.streams.pinned.values())

    def register(self, address: int, size: int, flags: int) -> int:
        """`cudaHostRegister`."""
        if self.pinnable is not None and self.pinned_bytes + size > self.pinnable:
            self.meter.error = "out of memory"
            return _REFUSED
        self.streams.pinned[address] = size
        return 0

    def unregister(self, address: int) -> int:
        """`cudaHostUnregister`."""
        return 0 if self.streams.pinned.pop(address, None) is not None else 1

    def synchronize(self, device: Any = None) -> None:
        self.wait("synchronize")
        self.streams.finish()

    def empty_cache(self) -> None:
        if self.is_stuck:
            raise RuntimeError("captures_underway.empty() INTERNAL ASSERT FAILED")

    def faked(self) -> dict[str, Any]:
        """What `torch.cuda` has while this device is there."""
        memory, streams = self.memory, self.streams
        runtime = SimpleNamespace(cudaHostRegister=self.register, cudaHostUnregister=self.unregister)
        major, minor = self.capability
        return {
            "_lazy_init": lambda: None,
            "is_available": lambda: True,
            "is_initialized": lambda: True,
            "device_count": lambda: 1,
            "current_device": lambda: 0,
            "mem_get_info": lambda device=None: (self.free_said or max(0, memory.free), memory.total),
            "memory_reserved": lambda device=None: memory.live,
            "memory_allocated": lambda device=None: memory.live,
            "max_memory_reserved": lambda device=None: memory.peak,
            "max_memory_allocated": lambda device=None: memory.peak,
            "synchronize": self.synchronize,
            "empty_cache": self.empty_cache,
            "set_per_process_memory_fraction": lambda part, device=None: setattr(memory, "fence", part),
            "get_device_name": lambda device=None: NAME,
            "get_device_capability": lambda device=None: self.capability,
            "get_device_properties": lambda device=None: SimpleNamespace(
                name=NAME, major=major, minor=minor, total_memory=memory.total, multi_processor_count=28
            ),
            "is_bf16_supported": lambda including_emulation=True: including_emulation or major >= 8,
            "cudart": lambda: runtime,
            "Stream": type("Stream", (Stream,), {"__init__": lambda self, *_, **__: streams.open(self)}),
            "Event": type("Event", (Event,), {"__init__": lambda self, *_, **__: Event.__init__(self, streams)}),
            "current_stream": lambda device=None: streams.current,
            "stream": streams.using,
            "CUDAGraph": type("CUDAGraph", (PretendGraph,), {"gpu": self}),
            "graph_pool_handle": object,
            "get_sync_debug_mode": lambda: self.sync_mode,
            "set_sync_debug_mode": lambda mode: setattr(self, "sync_mode", mode),
            "is_current_stream_capturing": lambda: self.recording is not None,
        }


@contextmanager
def pretend_cuda(
    memory: int = 8 << 30,
    *,
    others: int = 300 << 20,
    capability: tuple[int, int] = (8, 6),
    pinnable: int | None = None,
    seed: int = 0,
) -> Iterator[PretendCuda]:
    """While inside, torch has one CUDA device of `memory` bytes, of which the driver and others hold `others`.

    `pinnable` bytes of RAM can be page-locked; `seed` decides when late copies arrive. Raises as `pretending`.
    """
    gpu = PretendCuda(memory, others, capability, pinnable, seed)
    with pretending(gpu, {torch.cuda: gpu.faked(), torch._C: {"_host_emptyCache": lambda: None}}):
        yield gpu
