"""RAM that a device copies from while it computes: page-locked, as much of it as the system allows."""

from __future__ import annotations

from collections.abc import Callable

import torch

from moe_local.memory.accelerator import CPU, Accelerator
from moe_local.memory.slab import Slab
from moe_local.units import format_size


def host_slab(slots: int, slot_size: int, accelerator: Accelerator, note: Callable[[str], None]) -> Slab:
    """A slab in RAM to upload from; `note` is told where not all of it could be page-locked, and what that costs."""
    slab = Slab(slots, slot_size, torch.device(CPU))
    if accelerator.has_own_memory and (pinned := slab.pin(accelerator)) < slab.nbytes:
        note(
            f"{format_size(pinned)} of {format_size(slab.nbytes)} of RAM for experts could be page-locked: uploads"
            " from the rest are slower, and compute waits for them; give less --ram, or allow more (ulimit -l)"
        )
    return slab
