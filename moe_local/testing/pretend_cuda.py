"""A pretend CUDA device on a machine that has none: what it is asked, it computes on the CPU and counts.

    with pretend_cuda(memory=8 << 30) as gpu, load(model, Options(device="cuda")) as engine:
        with gpu.watch() as seen:
            engine.generate("Why?", Sampling(max_new_tokens=1))
        assert seen.syncs < 10, seen.told()

What it cannot tell is how fast anything is, and how a device rounds.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import library as torch_library
from torch.utils._device import _device_constructors as constructors

from moe_local.testing.pretend_memory import Gpu, Memory, Meter, Tally
from moe_local.testing.pretend_streams import Event, Stream, Streams
from moe_local.testing.pretend_tensor import DEVICE, PretendTensor, active, execute

__all__ = ["PretendCuda", "PretendTensor", "Tally", "pretend_cuda"]

NAME = "Pretend GPU"
_REFUSED = 2  # cudaErrorMemoryAllocation
_torch: Any = torch  # parts of it have no types
_Library: Any = torch_library.Library
# Factories that torch makes of others by changing a tensor's shape in place.
_RESHAPED = (
    "arange", "arange.start", "arange.start_step", "linspace", "eye", "eye.m", "randperm", "randperm.generator",
    "tril_indices", "triu_indices",
)  # fmt: skip


class PretendCuda(Gpu):
    """The device while it is pretended: `watch` it, and read its `memory`."""

    def __init__(self, total: int, others: int, capability: tuple[int, int], pinnable: int | None, seed: int) -> None:
        meter = Meter()
        super().__init__(Memory(total, others), meter, Streams(lambda: meter.launched, seed))
        self.capability = capability
        self.pinnable = pinnable  # bytes of RAM that can be page-locked; None: all
        self.free_said: int | None = None  # what is told to be free, where that is not so any more

    def watch(self) -> Any:
        """A context manager that gives the `Tally` of what happens inside."""
        return self.meter.watch()

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
        self.meter.sync("synchronize")
        self.streams.finish()

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
            "empty_cache": lambda: None,
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

    `pinnable` bytes of RAM can be page-locked; `seed` decides when late copies arrive. Raises RuntimeError where
    torch was built with CUDA: its own kernels would be asked.
    """
    if not can_pretend():
        raise RuntimeError("a CUDA device can be pretended on Linux, by a torch that was built without CUDA")
    # `with torch.device(...)` knows functions like torch.tensor by what they are when it is first used: not ours.
    constructors()
    gpu = PretendCuda(memory, others, capability, pinnable, seed)
    with ExitStack() as stack:
        stack.enter_context(_guard())
        for name, value in gpu.faked().items():
            stack.enter_context(mock.patch.object(torch.cuda, name, value))
        stack.enter_context(mock.patch.object(torch._C, "_host_emptyCache", lambda: None, create=True))
        for owner, name in ((torch, "tensor"), (torch, "as_tensor"), (torch.Tensor, "to"), (torch.Tensor, "cuda")):
            stack.enter_context(_with_index(owner, name))
        # torch.tensor(...) makes a tensor of the CPU's first, and then asks for it on the device.
        stack.callback(torch._C._set_only_lift_cpu_tensors, torch._C._only_lift_cpu_tensors())
        torch._C._set_only_lift_cpu_tensors(True)
        overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, overwrites)
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        for library in _libraries():
            stack.callback(library._destroy)
        active.append(gpu)
        stack.callback(active.remove, gpu)
        yield gpu


def can_pretend() -> bool:
    """Whether this torch lets a CUDA device be pretended."""
    return not _torch.backends.cuda.is_built() and _guards() is not None


def _libraries() -> list[Any]:
    """Has everything that torch would ask a CUDA device for, in whichever thread, come to the pretend one."""
    every, aten = _Library("_", "IMPL"), _Library("aten", "IMPL")
    every.fallback(lambda op, *args, **kwargs: execute(op, args, kwargs), "CUDA")
    for name in _RESHAPED:
        packet, _, overload = name.partition(".")
        op = getattr(getattr(torch.ops.aten, packet), overload or "default")
        aten.impl(name, lambda *args, op=op, **kwargs: execute(op, args, kwargs), "CUDA")
    return [aten, every]


def _guards() -> Any:
    """torch's table of the switches to a device, by kind of device; None where it cannot be had."""
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
        return (ctypes.c_void_p * 2).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    except (OSError, ValueError):
        return None


@contextmanager
def _guard() -> Iterator[None]:
    """While inside, switching to a CUDA device does what switching to the CPU does: nothing.

    It stays so afterwards: tensors of the device may still be there.
    """
    table = _guards()
    if table[1] is None:
        table[1] = table[0]
    yield


@contextmanager
def _with_index(owner: Any, name: str) -> Iterator[None]:
    """While inside, "cuda" means "cuda:0" to a function: torch would ask the device's guard which is current."""
    own = name in vars(owner)
    former: Callable[..., Any] = getattr(owner, name)

    @wraps(former)
    def indexed(*args: Any, **kwargs: Any) -> Any:
        if name == "cuda":
            return args[0].to(DEVICE)
        if "device" in kwargs:
            kwargs["device"] = _indexed(kwargs["device"])
        return former(*map(_indexed, args), **kwargs)

    setattr(owner, name, indexed)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, former)
        else:
            delattr(owner, name)


def _indexed(value: Any) -> Any:
    if isinstance(value, str) and value == "cuda":
        return DEVICE
    return DEVICE if isinstance(value, torch.device) and value == torch.device("cuda") else value
