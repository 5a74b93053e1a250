"""RAM that a device can be copied to from without a detour: page-locked, where the system allows it."""

from __future__ import annotations

import warnings

import torch

from moe_local.errors import first_line
from moe_local.memory.accelerator import CPU, Accelerator
from moe_local.memory.slab import Slab
from moe_local.units import format_size


def host_slab(slots: int, slot_size: int, accelerator: Accelerator) -> Slab:
    """A slab in RAM to upload from, page-locked if that helps; warns where the system does not allow as much."""
    if accelerator.pins:
        try:
            return Slab(slots, slot_size, torch.device(CPU), pinned=True)
        except RuntimeError as error:
            size = format_size(slots * slot_size)
            warnings.warn(f"{size} of RAM cannot be pinned ({first_line(error)}): uploads are slower", stacklevel=2)
    return Slab(slots, slot_size, torch.device(CPU))
