"""How a record is laid out and multiplied. A new format is a file and a line in `FORMATS`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from moe_local.checkpoint.record import Layout
from moe_local.formats.plain import PlainExpert, open_plain

FORMATS: dict[torch.dtype, Callable[[Layout, Tensor], PlainExpert]] = {
    torch.bfloat16: open_plain,
    torch.float16: open_plain,
    torch.float32: open_plain,
}


def open_expert(layout: Layout, slot: Tensor) -> PlainExpert:
    """The expert whose record of `layout` lies in `slot` (uint8 [bytes])."""
    return FORMATS[layout.dtype](layout, slot)


def supports(layout: Layout) -> bool:
    return layout.dtype in FORMATS
