"""The machine: what it is called, and how fast its memories and the link between them are."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter

import psutil
import torch

from benchmarks.gpu.measuring import Say
from benchmarks.gpu.scale import Scale
from moe_local.kernels.triton_probe import trouble
from moe_local.memory.accelerator import Accelerator
from moe_local.memory.pinned import host_slab
from moe_local.units import MIB
from moe_local.version import __version__

DEVICE = torch.device("cuda", 0)
_LIBRARIES = ("torch", "transformers", "triton", "accelerate", "bitsandbytes")
_COPIED_AT_ONCE = 4 * MIB  # bytes, about a record of an expert


def machine(say: Say) -> None:
    """Names, versions, sizes."""
    free, total = torch.cuda.mem_get_info()
    capability = torch.cuda.get_device_capability()
    say(
        gpu=torch.cuda.get_device_name(), capability=".".join(map(str, capability)), vram=total, vram_free=free,
        processor=_processor(), cores=os.cpu_count(), ram=psutil.virtual_memory().total,
        python=platform.python_version(), cuda=torch.version.cuda, moe_local=__version__,
        **{name: _version(name) for name in _LIBRARIES},
    )  # fmt: skip
    say(triton_kernels=trouble(DEVICE) or "used")
    say(**_driver())


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def _driver() -> dict[str, str | None]:
    """What the driver says of itself and of the slot; None where it is not asked."""
    fields = {"driver": "driver_version", "pcie_generation": "pcie.link.gen.max", "pcie_lanes": "pcie.link.width.max"}
    command = ["nvidia-smi", f"--query-gpu={','.join(fields.values())}", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return dict.fromkeys(fields)
    return dict(zip(fields, (part.strip() for part in said.splitlines()[0].split(",")), strict=True))


def links(say: Say, scale: Scale) -> None:
    """GB/s (10^9 bytes) of reading and copying the device's memory, of uploads and downloads of page-locked RAM."""
    numbers = torch.zeros(scale.copied // 4, dtype=torch.float32, device=DEVICE)
    say(memory_read=_speed(numbers.nbytes, scale.repeats, numbers.sum))
    other = torch.empty_like(numbers)
    say(memory_copy=_speed(2 * numbers.nbytes, scale.repeats, lambda: other.copy_(numbers)))
    size = min(_COPIED_AT_ONCE, scale.copied)
    slots = max(1, scale.copied // size // 4)
    source = host_slab(slots, size, Accelerator(DEVICE), lambda text: say(pinning=text))
    target = torch.zeros(slots, size, dtype=torch.uint8, device=DEVICE)

    def upload() -> None:
        for slot in range(slots):
            target[slot].copy_(source[slot], non_blocking=True)

    def download() -> None:
        for slot in range(slots):
            source[slot].copy_(target[slot], non_blocking=True)

    say(upload=_speed(slots * size, scale.repeats, upload), record=size)
    say(download=_speed(slots * size, scale.repeats, download))
    source.close()


def _speed(size: int, repeats: int, call: Callable[[], object]) -> float:
    return round(size / seconds_of(call, repeats) / 1e9, 3)


def seconds_of(call: Callable[[], object], repeats: int) -> float:
    """Of one call, of several between two syncs, after two others."""
    call()
    call()
    torch.cuda.synchronize()
    began = perf_counter()
    for _ in range(repeats):
        call()
    torch.cuda.synchronize()
    return (perf_counter() - began) / repeats
