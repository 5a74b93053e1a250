"""RAM in huge pages, where the system has them.

A disk that writes straight into our memory needs every page of it looked up and held: 650 pages of 4 KiB for an
expert of 2.6 MB, two of 2 MiB. On two cores that was a fifth of a token's time; matrices are read faster too.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import sys

import torch
from torch import Tensor

from moe_local.memory.accelerator import Accelerator

HUGE = 2 << 20  # bytes


def allocate(size: int) -> Tensor:
    """`size` bytes of RAM, uint8, aligned to a huge page where there are such; not touched yet.

    What is left beside whole huge pages is in small ones: a huge page that is touched is there to its end.
    """
    advice, against = (getattr(mmap, f"MADV_{kind}", None) for kind in ("HUGEPAGE", "NOHUGEPAGE"))
    if advice is None or against is None or size < HUGE:
        return torch.empty(size, dtype=torch.uint8)
    memory = mmap.mmap(-1, size + HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    raw = torch.frombuffer(memory, dtype=torch.uint8)
    start = -raw.data_ptr() % HUGE
    rest = start + size // HUGE * HUGE
    with contextlib.suppress(OSError):  # a kernel without them
        memory.madvise(advice, start, rest - start)
        memory.madvise(against, rest, len(memory) - rest)
    return raw[start : start + size]


def can_release() -> bool:
    """Whether memory can be given back to the system, ours and what the allocator has kept."""
    return sys.platform == "linux" and hasattr(ctypes.CDLL(None), "malloc_trim")


def release(memory: Tensor) -> None:
    """Gives the whole huge pages of `memory` back to the system; what was in them is lost."""
    start = memory.data_ptr()
    first, last = -(-start // HUGE) * HUGE, (start + memory.nbytes) // HUGE * HUGE
    if first < last:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), mmap.MADV_DONTNEED)


def trim() -> None:
    """Gives what has been freed, and the allocator keeps, back to the system."""
    ctypes.CDLL(None).malloc_trim(0)


def free_caches(accelerator: Accelerator) -> None:
    """Gives back what allocators keep of what has been freed: the C library's, and torch's for a device."""
    accelerator.free_cache()
    if can_release():
        trim()
