"""Formats by name. A new one is a file and a line here."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch

from moe_local.checkpoint.record import Encoding, Layout
from moe_local.formats.awq import Awq
from moe_local.formats.base import Format
from moe_local.formats.fp8 import Fp8
from moe_local.formats.gptq import Gptq
from moe_local.formats.signed import AbsmaxInt8, SignedInt8
from moe_local.formats.mxfp4 import Mxfp4
from moe_local.formats.nf4 import Nf4
from moe_local.formats.packed import Packed
from moe_local.formats.plain import Plain

FORMATS: dict[str, Callable[..., Format]] = {
    "bf16": lambda: Plain(torch.bfloat16),
    "fp16": lambda: Plain(torch.float16),
    "fp32": lambda: Plain(torch.float32),
    "absmax-int8": AbsmaxInt8,
    "awq": Awq,
    "fp8": Fp8,
    "gptq": Gptq,
    "signed-int8": SignedInt8,
    "mxfp4": Mxfp4,
    "nf4": Nf4,
    "packed": Packed,
}


@lru_cache(maxsize=256)
def format_of(encoding: Encoding) -> Format:
    """The format of an encoding. Raises KeyError for an unknown one."""
    return FORMATS[encoding.format](**dict(encoding.options))


def supports(layout: Layout) -> bool:
    return all(encoding.format in FORMATS for encoding in layout.encodings)
