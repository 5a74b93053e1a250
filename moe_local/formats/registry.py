"""Formats by name. A new one is a file and a line here."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch

from moe_local.checkpoint.record import Encoding, Layout
from moe_local.formats.base import Format
from moe_local.formats.gguf import Gguf
from moe_local.formats.plain import Plain

FORMATS: dict[str, Callable[..., Format]] = {
    "bf16": lambda: Plain(torch.bfloat16),
    "fp16": lambda: Plain(torch.float16),
    "fp32": lambda: Plain(torch.float32),
    "gguf": Gguf,
}


@lru_cache(maxsize=256)
def format_of(encoding: Encoding) -> Format:
    """The format of an encoding. Raises KeyError for an unknown one."""
    return FORMATS[encoding.format](**dict(encoding.options))


def supports(layout: Layout) -> bool:
    return all(encoding.format in FORMATS for encoding in layout.encodings)
