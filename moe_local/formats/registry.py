"""Formats by name. A new one is a file and a line here."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch

from moe_local.checkpoint.record import Encoding, Layout
from moe_local.errors import MoeLocalError
from moe_local.formats.awq import Awq
from moe_local.formats.base import Format, Packable
from moe_local.formats.compressed_tensors import Packed
from moe_local.formats.fp8 import Fp8
from moe_local.formats.gguf import Gguf
from moe_local.formats.gptq import Gptq
from moe_local.formats.int4 import Int4, native_rows
from moe_local.formats.int8 import Int8
from moe_local.formats.mlx import Mlx
from moe_local.formats.mxfp4 import Mxfp4
from moe_local.formats.nf4 import Nf4
from moe_local.formats.nvfp4 import Nvfp4
from moe_local.formats.plain import Plain
from moe_local.formats.signed import AbsmaxInt8, SignedInt8

FORMATS: dict[str, Callable[..., Format]] = {
    "bf16": lambda: Plain(torch.bfloat16),
    "fp16": lambda: Plain(torch.float16),
    "fp32": lambda: Plain(torch.float32),
    "int8": Int8,
    "int4": Int4,
    "absmax-int8": AbsmaxInt8,
    "awq": Awq,
    "fp8": Fp8,
    "gptq": Gptq,
    "signed-int8": SignedInt8,
    "mlx": Mlx,
    "mxfp4": Mxfp4,
    "nf4": Nf4,
    "nvfp4": Nvfp4,
    "packed": Packed,
    "gguf": Gguf,
}


@lru_cache(maxsize=256)
def format_of(encoding: Encoding) -> Format:
    """The format of an encoding. Raises KeyError for an unknown one."""
    return FORMATS[encoding.format](**dict(encoding.options))


def supports(layout: Layout) -> bool:
    return all(encoding.format in FORMATS for encoding in layout.encodings)


# What matrices can be packed into, by the name that users type; `group` is the group size asked for.
PACKED: dict[str, Callable[[int], Encoding]] = {
    "bf16": lambda group: Encoding("bf16"),
    "fp16": lambda group: Encoding("fp16"),
    "fp32": lambda group: Encoding("fp32"),
    "int8": lambda group: Encoding("int8"),
    "fp8": lambda group: Encoding("fp8", (("block", 128),)),
    "mxfp4": lambda group: Encoding("mxfp4"),
    "nf4": lambda group: Encoding("nf4"),
    "nvfp4": lambda group: Encoding("nvfp4"),
    "int4": lambda group: Encoding("int4", (("group", group), ("rows", native_rows() or 64))),
}
GROUP_SIZES = (32, 64, 128)


def packed_encoding(name: str, group: int = 64) -> Encoding:
    """The encoding to pack into. Raises MoeLocalError for an unknown name or group size."""
    if name not in PACKED:
        raise MoeLocalError(f"there is no format {name!r}", remedy=f"use {', '.join(PACKED)}")
    if group not in GROUP_SIZES:
        raise MoeLocalError(f"a group of {group} is not supported", remedy=f"use {', '.join(map(str, GROUP_SIZES))}")
    return PACKED[name](group)


def packable(encoding: Encoding) -> Packable:
    """The format of an encoding that matrices can be put into."""
    found = format_of(encoding)
    assert isinstance(found, Packable), encoding
    return found
