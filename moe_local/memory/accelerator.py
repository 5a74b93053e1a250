"""The one place that asks torch about a device: what kind it is, what it can, how much memory it has."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from moe_local.errors import BudgetError, MoeLocalError, first_line
from moe_local.units import GIB, MIB, format_size

AUTO, CPU = "auto", "cpu"
KINDS = (CPU, "cuda", "mps")
_LEAST_LARGEST = GIB  # bytes: Metal's largest buffer is a share of RAM, and always more
_cuda: Any = torch.cuda  # much of it has no types


@dataclass(frozen=True)
class Accelerator:
    """A device that a model can compute on; for torch, ROCm's are "cuda" too."""

    device: torch.device

    @property
    def kind(self) -> str:
        """One of `KINDS`."""
        return self.device.type

    @property
    def is_cpu(self) -> bool:
        return self.device.type == CPU

    @property
    def has_own_memory(self) -> bool:
        """Whether its memory is another than the machine's RAM."""
        return self.device.type == "cuda"

    @property
    def shares_ram(self) -> bool:
        """Whether its memory is a part of RAM that a process cannot read files into."""
        return self.device.type == "mps"

    @property
    def name(self) -> str:
        """As its driver has it."""
        return torch.cuda.get_device_name(self.device) if self.has_own_memory else self.kind

    @property
    def capability(self) -> str:
        """CUDA's compute capability, like 8.6; `cpu_capability` of a CPU."""
        if not self.has_own_memory:
            return cpu_capability()
        major, minor = torch.cuda.get_device_capability(self.device)
        return f"{major}.{minor}"

    @property
    def computes_bfloat16(self) -> bool:
        """Whether it has instructions for bfloat16: CUDA's devices before capability 8.0 imitate it, slowly."""
        if self.shares_ram:
            return torch.backends.mps.is_macos_or_newer(14, 0)
        return not self.has_own_memory or torch.cuda.get_device_capability(self.device) >= (8, 0)

    @property
    def reads_ram(self) -> bool:
        """Whether its kernels can read page-locked RAM by the addresses that the host has for it."""
        return self.has_own_memory and sys.platform != "win32"

    @property
    def largest_buffer(self) -> int | None:
        """Bytes that are surely had in one piece, of a device that gives far fewer than it has; None for others."""
        return _LEAST_LARGEST if self.shares_ram else None

    def memory(self) -> tuple[int, int]:
        """Free and total bytes of its memory: of mps, of that part of RAM which a process is recommended to take."""
        if self.shares_ram:
            most = torch.mps.recommended_max_memory()
            return max(0, most - self.held_memory()), most
        return torch.cuda.mem_get_info(self.device)

    def held_memory(self) -> int:
        """Bytes of its memory that torch holds in this process now."""
        if self.shares_ram:
            return torch.mps.driver_allocated_memory()
        return torch.cuda.memory_reserved(self.device)

    def peak_memory(self) -> int:
        """The most bytes of its memory that torch has held in this process; of mps, what it holds."""
        return self.held_memory() if self.shares_ram else torch.cuda.max_memory_reserved(self.device)

    def fence(self, size: int | None) -> None:
        """Has torch take no more than `size` bytes of the device's own memory for this process; None: no such bound.

        What is asked for beyond ends in torch.OutOfMemoryError, after torch has given back what it keeps.
        """
        if self.has_own_memory:
            part = 1.0 if size is None else min(1.0, size / self.memory()[1])
            torch.cuda.set_per_process_memory_fraction(part, self.device)

    def pin(self, address: int, size: int) -> bool:
        """Page-locks RAM that is there already, so that it can be copied from beside compute; whether it could."""
        if not self.has_own_memory:
            return False
        if int(_cuda.cudart().cudaHostRegister(address, size, 0)) == 0:
            return True
        # The refusal is kept as an error of the device's, which the next kernel would be accused of.
        with contextlib.suppress(RuntimeError):
            torch.zeros(1, device=self.device)
        return False

    def unpin(self, address: int) -> None:
        """Gives back what was page-locked from this address on."""
        _cuda.cudart().cudaHostUnregister(address)

    def copy_stream(self) -> CopyStream | None:
        """A new queue for copies beside compute; None where the device has no memory of its own to copy to."""
        return CudaCopies(self.device) if self.has_own_memory else None

    def synchronize(self) -> None:
        """Waits until everything that was asked of it is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()

    def free_cache(self) -> None:
        """Gives back what torch keeps of memory that has been freed, its own and page-locked RAM."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch._C._host_emptyCache()
        elif self.device.type == "mps":
            torch.mps.empty_cache()


class Mark(Protocol):
    """A moment in a queue of copies."""

    def query(self) -> bool:
        """Whether it has come."""

    def synchronize(self) -> None:
        """Waits until it has."""


class CopyStream(Protocol):
    """A queue of copies from RAM into a device's memory, which go on while it computes."""

    def copy(self, target: Tensor, source: Tensor) -> Mark:
        """Copies `source`, in RAM, once all compute that has been issued is done; -> when the copy has ended.

        Until then the source must stay as it is; the target may be read by compute that was told to wait.
        """

    def compute_after(self, mark: Mark) -> None:
        """Has all compute that is issued from now on wait for a mark; the caller does not."""

    def synchronize(self) -> None:
        """Waits until all copies have ended."""


class CudaCopies:
    """The `CopyStream` of a CUDA device, a stream and its events."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = _cuda.Stream(device)

    def copy(self, target: Tensor, source: Tensor) -> Mark:
        self._stream.wait_stream(torch.cuda.current_stream(self._device))  # who read the target before, has
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)
        mark: Mark = self._stream.record_event()
        return mark

    def compute_after(self, mark: Mark) -> None:
        _cuda.current_stream(self._device).wait_event(mark)

    def synchronize(self) -> None:
        self._stream.synchronize()


_METAL = Accelerator(torch.device("mps", 0))


def cpu_capability() -> str:
    """torch's name for the vector instructions of this processor that it uses, like AVX512 or AVX2."""
    return torch.backends.cpu.get_cpu_capability()


def is_out_of_memory(error: Exception) -> bool:
    """Whether torch says that a device has no memory left."""
    return isinstance(error, torch.OutOfMemoryError) or str(error).startswith("MPS backend out of memory")


def out_of_memory(error: Exception) -> BudgetError:
    """What torch says of a device that has no memory left, in our words, with figures and what to do."""
    there = gpus() or ([_METAL] if torch.backends.mps.is_available() else [])
    figures = [
        f"{each.name}: {format_size(each.memory()[0])} of {format_size(each.memory()[1])} free" for each in there
    ]
    least = max((each.peak_memory() for each in there), default=0)
    if " allowed; " in str(error):
        what, remedy = (
            "more than --vram allows is needed",
            "give more --vram, or a shorter --context, and report this",
        )
    else:
        what = "the device has no memory left"
        remedy = f"close what else uses it, give less --vram than {-(-least // MIB)}MiB, or a shorter --context"
    return BudgetError(f"{what} ({', '.join([*figures, first_line(error)])})", minimum=least, remedy=remedy)


def on_cpu(device: torch.device) -> bool:
    """Whether tensors on a device lie in RAM, and a CPU computes with them."""
    return device.type == CPU


def runs_triton(device: torch.device) -> bool:
    """Whether Triton compiles kernels for a device of its kind."""
    return device.type == "cuda"


def launching_on(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Within it, kernels are launched on a device, which need not be the first of its kind."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def has_triton_cores(device: torch.device) -> bool:
    """Whether Triton multiplies matrices by tensor cores on a device: it does not on GPUs before capability 8.0."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 0)


def gpus() -> list[Accelerator]:
    """The devices with memory of their own."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [Accelerator(torch.device("cuda", index)) for index in range(count)]


def find(name: str) -> Accelerator:
    """The device that a user names: auto (the first GPU, else the CPU), cpu, cuda or cuda:1, mps.

    Raises MoeLocalError for one that is not there, or no name.
    """
    there = gpus()
    if name == AUTO:
        return there[0] if there else Accelerator(torch.device(CPU))
    kind, colon, index = name.partition(":")
    if kind not in KINDS or (colon and not (index.isascii() and index.isdecimal())):
        raise MoeLocalError(f"--device {name} is unknown", remedy="use auto, cpu, mps, cuda or, of several, cuda:1")
    if kind == CPU:
        return Accelerator(torch.device(CPU))
    if kind == "mps":
        return _metal(name, int(index or 0))
    if not there:
        raise MoeLocalError("torch sees no CUDA device", remedy="use --device cpu, or install torch for CUDA")
    if int(index or 0) >= len(there):
        known = ", ".join(f"cuda:{number} ({each.name})" for number, each in enumerate(there))
        raise MoeLocalError(f"there is no device {name}", remedy=f"use one of {known}")
    return there[int(index or 0)]


def _metal(name: str, index: int) -> Accelerator:
    if index or not torch.backends.mps.is_available():
        raise MoeLocalError(f"there is no device {name}", remedy="use --device cpu")
    return _METAL
