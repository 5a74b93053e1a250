"""Whether Triton's kernels run on a device. One is tried: they need a driver and a compiler of the user's."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from moe_local.errors import first_line
from moe_local.kernels.triton_matrix import missing
from moe_local.memory.accelerator import CPU, Accelerator, runs_triton
from moe_local.memory.slab import Slab


def usable(device: torch.device) -> bool:
    """Whether the kernels can run on a device."""
    return runs_triton(device) and trouble(device) is None


@lru_cache(maxsize=8)
def trouble(device: torch.device) -> str | None:
    """Why the kernels do not run on a GPU; None where they do."""
    if (absent := missing()) is not None:
        return absent
    try:
        return None if _sums(device) else "Triton's first kernel gave wrong numbers"
    except Exception as error:  # whatever a driver, a compiler or a GPU of another kind has to say
        return f"Triton's first kernel failed ({type(error).__name__}: {first_line(error)})"


@lru_cache(maxsize=8)
def reads_ram(device: torch.device) -> bool:
    """Whether the kernels on a device read page-locked RAM where it lies."""
    accelerator = Accelerator(device)
    if not accelerator.reads_ram:
        return False
    ram = Slab(1, Slab.ALIGNMENT, torch.device(CPU))
    try:
        return ram.pin(accelerator) > 0 and _sums(device, ram[0][:32].view(torch.float32))
    except Exception:  # as above
        return False
    finally:
        ram.close()


def _sums(device: torch.device, memory: Tensor | None = None) -> bool:
    """Whether the smallest of the kernels computes what it should, of 8 numbers in `memory` if that is given."""
    from moe_local.kernels.triton_layout import OPTIONS
    from moe_local.kernels.triton_vector import weighted_sum

    parts = (torch.empty(8, device=device) if memory is None else memory).copy_(torch.arange(8.0)).view(2, 4)
    weights, index = torch.full((1, 2), 0.5, device=device), torch.zeros(1, 2, dtype=torch.int64, device=device)
    out = torch.empty(1, 4, device=device)
    weighted_sum[1, 1](parts, index, None, weights, out, 1, 2, 4, of_slots=False, tile=16, **OPTIONS)
    return out.tolist() == [[2.0, 3.0, 4.0, 5.0]]
