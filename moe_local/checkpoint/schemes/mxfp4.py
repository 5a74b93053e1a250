"""mxfp4, as gpt-oss has it: 4-bit floats (E2M1), and for each 32 along a row a power of two (E8M0).

`NAME_blocks` U8 [experts, out, in / 32, 16] has two numbers a byte, the low half first; `NAME_scales` U8 [experts,
out, in / 32] has exponents, 127 more than they mean. The model's parameter `NAME` is [experts, in, out].

https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf,
https://huggingface.co/openai/gpt-oss-20b
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from moe_local.checkpoint.encoding import Encoding
from moe_local.checkpoint.header import TensorEntry
from moe_local.checkpoint.record import EncodedTensor
from moe_local.checkpoint.schemes.checks import assert_none_left, expect

_BLOCKS, _SCALES = "_blocks", "_scales"
_BYTES = 16  # of a block of 32


def mxfp4(config: Mapping[str, Any], tensors: Mapping[str, TensorEntry]) -> list[EncodedTensor]:
    """The experts' matrices of 4-bit floats."""
    encoded = [_matrix(tensors, name.removesuffix(_BLOCKS)) for name in tensors if name.endswith(_BLOCKS)]
    used = {part.name for tensor in encoded for part in tensor.parts.values()}
    assert_none_left(tensors, [_SCALES], used)
    return encoded


def _matrix(tensors: Mapping[str, TensorEntry], name: str) -> EncodedTensor:
    blocks = expect(tensors, name + _BLOCKS, [torch.uint8])
    if len(blocks.shape) != 4 or 0 in blocks.shape or blocks.shape[-1] != _BYTES:
        raise ValueError(f"tensor {blocks.name!r} has shape {blocks.shape}, not [experts, out, in / 32, {_BYTES}]")
    experts, out, across, _ = blocks.shape
    scales = expect(tensors, name + _SCALES, [torch.uint8], (experts, out, across))
    parts = {"blocks": blocks, "scales": scales}
    return EncodedTensor(name, (experts, out, across * 2 * _BYTES), Encoding("mxfp4"), parts, transposed=True)
