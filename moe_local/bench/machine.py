"""How fast this machine's memory and disk are, measured in a second or two."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

import torch

from moe_local.errors import StorageError
from moe_local.memory.accelerator import CPU, gpus
from moe_local.memory.limits import memory_limit
from moe_local.memory.slab import Slab
from moe_local.planning.calibration import read_calibration
from moe_local.planning.machines import Machine, detect
from moe_local.units import MIB

_TRIAL = 256 * MIB  # bytes written and read back to measure the disk, and read to measure memory
_READS = 5
_BLOCK = 8 * MIB


@dataclass(frozen=True)
class Disk:
    """Of a folder's disk: bytes free; GB/s (10^9 bytes) of writing and of reading, None where it is too full."""

    free: int
    write: float | None
    read: float | None


def this_machine(folder: Path) -> Machine:
    """This machine, with the disk that `folder` is on.

    RAM and disk are measured; of a GPU the rated speed of the nearest known one counts, and over PCIe what a
    calibration measured, else the rated speed too. Raises StorageError for a folder that cannot be used.
    """
    there = gpus()
    gpu = there[0] if there else None
    near = detect(gpu.name, gpu.memory()[1]) if gpu else detect(None, None)
    measured = read_calibration(gpu.name, torch.get_num_threads()) if gpu else None
    return Machine(
        name="this machine",
        title=gpu.name if gpu else "no GPU",
        ram=memory_limit(),
        vram=gpu.memory()[1] if gpu else None,
        memory_bandwidth=near.vram_bandwidth if gpu else memory_speed(),
        pcie_bandwidth=1e-9 / measured.upload if measured else near.pcie_bandwidth,
        disk_bandwidth=measure_disk(folder).read or near.disk_bandwidth,
    )


def memory_speed() -> float:
    """GB/s of reading RAM with all threads."""
    slab = Slab(1, _TRIAL, torch.device(CPU))
    numbers = slab[0].fill_(1).view(torch.int64)
    times = []
    for _ in range(_READS):
        began = perf_counter()
        numbers.sum()
        times.append(perf_counter() - began)
    return _TRIAL / median(times) / 1e9


def measure_disk(folder: Path) -> Disk:
    """Free space, and the speed of writing and of reading uncached, where the system lets us drop its cache.

    Raises StorageError for a folder that cannot be used.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if free < 2 * _TRIAL:
            return Disk(free, None, None)
        with tempfile.NamedTemporaryFile(dir=folder, prefix="disk-trial-") as file:
            return Disk(free, _write_speed(file.fileno()), _read_speed(file.fileno()))
    except OSError as error:
        raise StorageError(
            f"the cache folder {folder} cannot be used: {error.strerror}",
            remedy="set MOE_LOCAL_HOME to another folder",
        ) from error


def _write_speed(descriptor: int) -> float:
    block = os.urandom(_BLOCK)
    began = perf_counter()
    for _ in range(_TRIAL // _BLOCK):
        os.write(descriptor, block)
    os.fsync(descriptor)
    return _TRIAL / (perf_counter() - began) / 1e9


def _read_speed(descriptor: int) -> float:
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.lseek(descriptor, 0, os.SEEK_SET)
    began = perf_counter()
    while os.read(descriptor, _BLOCK):
        pass
    return _TRIAL / (perf_counter() - began) / 1e9
