"""What it takes for torch to have a device that it was built without: all that it would be asked comes here."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import wraps
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import library as torch_library
from torch.utils._device import _device_constructors as constructors

from moe_local.testing.pretend_memory import Gpu
from moe_local.testing.pretend_tensor import active, execute

_torch: Any = torch  # parts of it have no types
_Library: Any = torch_library.Library
_KINDS = {"cuda": 1, "mps": 13}  # torch's numbers of them
_MOST_KINDS = 20
# Factories that torch makes of others by changing a tensor's shape in place.
_RESHAPED = (
    "arange", "arange.start", "arange.start_step", "linspace", "eye", "eye.m", "randperm", "randperm.generator",
    "tril_indices", "triu_indices",
)  # fmt: skip


def can_pretend() -> bool:
    """Whether this torch lets a device be pretended."""
    built: bool = _torch.backends.cuda.is_built() or _torch.backends.mps.is_built()
    return not built and _guards() is not None


@contextmanager
def pretending(gpu: Gpu, faked: Mapping[Any, Mapping[str, Any]]) -> Iterator[None]:
    """While inside, torch has this device; what is `faked` of torch's modules, by name, says so.

    Raises RuntimeError where torch was built with devices: its own kernels would be asked.
    """
    if not can_pretend():
        raise RuntimeError("a device can be pretended on Linux, by a torch that was built without CUDA")
    # `with torch.device(...)` knows functions like torch.tensor by what they are when it is first used: not ours.
    constructors()
    with ExitStack() as stack:
        _guard(gpu.device.type)
        for owner, values in faked.items():
            for name, value in values.items():
                stack.enter_context(mock.patch.object(owner, name, value, create=True))
        for owner, name in ((torch, "tensor"), (torch, "as_tensor"), (torch.Tensor, "to"), (torch.Tensor, "cuda")):
            stack.enter_context(_with_index(gpu.device, owner, name))
        # torch.tensor(...) makes a tensor of the CPU's first, and then asks for it on the device.
        stack.callback(torch._C._set_only_lift_cpu_tensors, torch._C._only_lift_cpu_tensors())
        torch._C._set_only_lift_cpu_tensors(True)
        overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, overwrites)
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        for library in _libraries(gpu.device.type.upper()):
            stack.callback(library._destroy)
        active.append(gpu)
        stack.callback(active.remove, gpu)
        yield


def _libraries(key: str) -> list[Any]:
    """Has everything that torch would ask such a device for, in whichever thread, come to the pretend one."""
    every, aten = _Library("_", "IMPL"), _Library("aten", "IMPL")
    every.fallback(lambda op, *args, **kwargs: execute(op, args, kwargs), key)
    for name in _RESHAPED:
        packet, _, overload = name.partition(".")
        op = getattr(getattr(torch.ops.aten, packet), overload or "default")
        aten.impl(name, lambda *args, op=op, **kwargs: execute(op, args, kwargs), key)
    return [aten, every]


def _guards() -> Any:
    """torch's table of the switches to a device, by kind of device; None where it cannot be had."""
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
        return (ctypes.c_void_p * _MOST_KINDS).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    except (OSError, ValueError):
        return None


def _guard(kind: str) -> None:
    """From now on switching to a device of a kind does what switching to the CPU does: nothing.

    It stays so: tensors of the device may outlive it.
    """
    table, number = _guards(), _KINDS[kind]
    if table[number] is None:
        table[number] = table[0]


@contextmanager
def _with_index(device: torch.device, owner: Any, name: str) -> Iterator[None]:
    """While inside, a kind without a number is `device` to a function: torch would ask a guard which is current."""
    own = name in vars(owner)
    former: Callable[..., Any] = getattr(owner, name)

    def indexed(value: Any) -> Any:
        bare = isinstance(value, str | torch.device) and str(value) == device.type
        return device if bare else value

    @wraps(former)
    def with_index(*args: Any, **kwargs: Any) -> Any:
        if name == "cuda":
            return args[0].to(device)
        if "device" in kwargs:
            kwargs["device"] = indexed(kwargs["device"])
        return former(*map(indexed, args), **kwargs)

    setattr(owner, name, with_index)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, former)
        else:
            delattr(owner, name)
