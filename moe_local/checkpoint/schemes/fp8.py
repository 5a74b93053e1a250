"""fp8: 8-bit floats with a scale for each block of a matrix, or for each row, or one in all.

`NAME` (F8_E4M3 or F8_E5M2) [out, in] or [experts, out, in], times its `NAME_scale_inv` or `NAME_scale` (any float, or
U8 exponents), which has a number for each block of the configuration's `weight_block_size` [rows, columns], edges
included, as DeepSeek-V3 and Qwen3's FP8 checkpoints do; without that setting, for each row or for the whole matrix.
Weights only: the activations, which other engines quantise too, stay as they are.

DeepSeek-V4 calls the scales of `X.weight` `X.scale`, Mistral `X.qscale_weight`. DeepSeek-V4's experts are 4-bit
floats instead: I8 [out, in / 2], two numbers a byte, the low half first, with exponents [out, in / 32].

https://huggingface.co/docs/transformers/quantization/finegrained_fp8,
https://huggingface.co/deepseek-ai/DeepSeek-V3/blob/main/README_WEIGHTS.md
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from moe_local.checkpoint.encoding import Encoding
from moe_local.checkpoint.header import TensorEntry
from moe_local.checkpoint.record import EncodedTensor
from moe_local.checkpoint.schemes.checks import FLOATS, assert_none_left, expect, expect_matrix

FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
_OF_ACTIVATIONS = ("activation_scale", "input_scale", "qscale_act")
_EXPONENTS = (torch.float8_e8m0fnu, torch.uint8)
_SCALES = (*FLOATS, *_EXPONENTS)
_FLOATS4 = 32  # 4-bit floats that share an exponent

Block = tuple[int, int]  # [rows, columns]


def fp8(config: Mapping[str, Any], tensors: Mapping[str, TensorEntry]) -> list[EncodedTensor]:
    """The matrices of 8-bit floats."""
    block = block_size(config.get("weight_block_size"))
    encoded = [_matrix(tensors, name, block) for name, e in tensors.items() if e.dtype in (*FLOAT8, torch.int8)]
    used = {part.name for tensor in encoded for part in tensor.parts.values()}
    assert_none_left(tensors, ["_scale_inv"], used)
    return encoded


def _matrix(tensors: Mapping[str, TensorEntry], name: str, block: Block | None) -> EncodedTensor:
    prefix = name.removesuffix("weight")
    names = [f"{name}_scale_inv", f"{name}_scale", f"{prefix}scale", f"{prefix}qscale_weight"]
    scale = next((other for other in names if other in tensors), names[0])
    beside = tuple(prefix + other for other in _OF_ACTIVATIONS if prefix + other in tensors)
    if tensors[name].dtype == torch.int8:
        return float4_matrix(tensors, name, scale, torch.int8)
    return float8_matrix(tensors, name, scale, block, beside)


def float4_matrix(tensors: Mapping[str, TensorEntry], name: str, scale: str, dtype: torch.dtype) -> EncodedTensor:
    """The matrix `name` of 4-bit floats, two to a byte of `dtype`, and its exponents, checked against each other."""
    packed = expect_matrix(tensors, name, [dtype])
    out, width = packed.shape[0], packed.shape[1] * 2
    if width % _FLOATS4:
        raise ValueError(f"tensor {name!r} has rows of {width}, not of whole blocks of {_FLOATS4}")
    across = width // _FLOATS4
    scales = expect(tensors, scale, _EXPONENTS, (out, across))
    parts = {
        "blocks": replace(packed, dtype=torch.uint8, shape=(out, across, _FLOATS4 // 2)),
        "scales": replace(scales, dtype=torch.uint8),
    }
    return EncodedTensor(name, (out, width), Encoding("mxfp4"), parts)


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
