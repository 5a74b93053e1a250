"""fp8: 8-bit floats with a scale for each block of a matrix, or for each row, or one in all.

`NAME` (F8_E4M3 or F8_E5M2) [out, in] or [experts, out, in], times its `NAME_scale_inv` or `NAME_scale` (any float, or
U8 exponents), which has a number for each block of the configuration's `weight_block_size` [rows, columns], edges
included, as DeepSeek-V3 and Qwen3's FP8 checkpoints do; without that setting, for each row or for the whole matrix.
Weights only: the activations, which other engines quantise too, stay as they are.

https://huggingface.co/docs/transformers/quantization/finegrained_fp8,
https://huggingface.co/deepseek-ai/DeepSeek-V3/blob/main/README_WEIGHTS.md
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from moe_local.checkpoint.header import TensorEntry
from moe_local.checkpoint.record import EncodedTensor, Encoding
from moe_local.checkpoint.schemes.checks import FLOATS, assert_none_left, expect

FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
_SCALES = (*FLOATS, torch.float8_e8m0fnu, torch.uint8)
_SUFFIXES = ("_scale_inv", "_scale")
_OF_ACTIVATIONS = ("activation_scale", "input_scale")

Block = tuple[int, int]  # [rows, columns]


def fp8(config: Mapping[str, Any], tensors: Mapping[str, TensorEntry]) -> list[EncodedTensor]:
    """The matrices of 8-bit floats."""
    block = block_size(config.get("weight_block_size"))
    encoded = [_matrix(tensors, name, block) for name, entry in tensors.items() if entry.dtype in FLOAT8]
    used = {part.name for tensor in encoded for part in tensor.parts.values()}
    assert_none_left(tensors, ["_scale_inv"], used)
    return encoded


def _matrix(tensors: Mapping[str, TensorEntry], name: str, block: Block | None) -> EncodedTensor:
    scale = next((name + suffix for suffix in _SUFFIXES if name + suffix in tensors), name + _SUFFIXES[0])
    prefix = name.removesuffix("weight")
    beside = tuple(prefix + other for other in _OF_ACTIVATIONS if prefix + other in tensors)
    return float8_matrix(tensors, name, scale, block, beside)


def float8_matrix(
    tensors: Mapping[str, TensorEntry], name: str, scale: str, block: Block | None, beside: tuple[str, ...] = ()
) -> EncodedTensor:
    """The matrix `name` of 8-bit floats and its scales, checked against each other."""
    weight = expect(tensors, name, FLOAT8)
    if len(weight.shape) not in (2, 3) or 0 in weight.shape:
        raise ValueError(f"tensor {name!r} has shape {weight.shape}, which is no matrix")
    lead, (out, width) = weight.shape[:-2], weight.shape[-2:]
    if block is None:
        whole = [lead] if lead else [(), (1,)]
        shapes = [*whole, (*lead, 1, 1), (*lead, out), (*lead, out, 1)]
        encoding = Encoding("fp8")
    else:
        rows, columns = block
        shapes = [(*lead, -(-out // rows), -(-width // columns))]
        encoding = fp8_encoding(block)
    parts = {"weight": weight, "scale": expect(tensors, scale, _SCALES, *shapes)}
    return EncodedTensor(name, weight.shape, encoding, parts, beside=beside)


def fp8_encoding(block: Block) -> Encoding:
    rows, columns = block
    return Encoding("fp8", (("block", rows), *((("columns", columns),) if columns != rows else ())))


def block_size(value: object) -> Block | None:
    """A setting of [rows, columns]; None if it is not set. Raises ValueError if it is something else."""
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 2 or not all(type(item) is int and item > 0 for item in value):
        raise ValueError(f"the block size is {value!r}")
    return value[0], value[1]
