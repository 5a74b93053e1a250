"""The quantised tensors of a GGUF file: rows of blocks.

The `quantization_config` is made in `moe_local.checkpoint.gguf`: `tensors` has, for the name of each, its `type`
(`Q4_K` ...) and, where llama.cpp keeps the rows of each head's rotary halves interleaved, `rotary_heads`; or the
`change` that makes it of `parts` of the file, the `numbers` of that and its `shape`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from moe_local.checkpoint.encoding import Encoding
from moe_local.checkpoint.gguf_header import block_sizes
from moe_local.checkpoint.header import TensorEntry
from moe_local.checkpoint.record import EncodedTensor


def gguf(config: Mapping[str, Any], tensors: Mapping[str, TensorEntry]) -> list[EncodedTensor]:
    """Blocks uint8 [(experts,) out, bytes of a row] -> matrices [(experts,) out, in]."""
    sizes = {name: (elements, size) for name, elements, size in block_sizes().values()}
    found = []
    for name, options in config["tensors"].items():
        if "change" in options:
            found.append(_changed(name, options, tensors))
            continue
        entry, kind = tensors[name], options["type"]
        elements, size = sizes[kind]
        *stack, rows, width = entry.shape
        if entry.dtype != torch.uint8 or len(stack) > 1 or width % size:
            raise ValueError(f"{name} is not made of blocks of {kind}")
        if heads := options.get("rotary_heads", 0):
            if heads < 0 or rows % (2 * heads):
                raise ValueError(f"{name} has {rows} rows for {heads} heads")
            encoding = Encoding("gguf", (("type", kind), ("rotary_heads", heads)))
        else:
            encoding = Encoding("gguf", (("type", kind),))
        found.append(EncodedTensor(name, (*stack, rows, width // size * elements), encoding, {"blocks": entry}))
    return found


def _changed(name: str, options: Mapping[str, Any], tensors: Mapping[str, TensorEntry]) -> EncodedTensor:
    types = "+".join(options["parts"].values())
    encoding = Encoding(
        "gguf-changed", (("change", options["change"]), ("types", types), *options["numbers"].items())
    )
    parts = {str(number): tensors[part] for number, part in enumerate(options["parts"])}
    return EncodedTensor(name, tuple(options["shape"]), encoding, parts)
