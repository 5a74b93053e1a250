"""mlx: what MLX's tools quantise. config.json has `quantization`, and often a `quantization_config` that repeats it.

`X.weight` U32 [(experts,) out, in * bits / 32], and `X.scales` and `X.biases` [(experts,) out, in / group_size]: mode
"affine". Mode "mxfp4" has `X.scales` U8 exponents, of groups of 32, "nvfp4" U8 bits of E4M3, of 16, and no biases.
Settings of a module's own stand beside the common ones under its name, `false` for one that is left alone.

https://github.com/ml-explore/mlx-lm/blob/main/mlx_lm/utils.py
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from moe_local.checkpoint.encoding import Encoding
from moe_local.checkpoint.header import TensorEntry
from moe_local.checkpoint.record import EncodedTensor
from moe_local.checkpoint.schemes.checks import FLOATS, assert_none_left, bits_of, expect, group_size
from moe_local.errors import UnsupportedError

_BITS = (2, 3, 4, 5, 6, 8)
_FLOATS4 = {"mxfp4": 32, "nvfp4": 16}  # numbers that share a scale
_WORD = 32  # bits of U32


def mlx(config: Mapping[str, Any], tensors: Mapping[str, TensorEntry]) -> list[EncodedTensor]:
    """The matrices of integers or 4-bit floats, under MLX's names."""
    modules = [name.removesuffix(".scales") for name in tensors if name.endswith(".scales")]
    encoded = [_matrix(_settings(config, module), tensors, module) for module in modules]
    used = {part.name for tensor in encoded for part in tensor.parts.values()}
    assert_none_left(tensors, [".biases"], used)
    return encoded


def _settings(config: Mapping[str, Any], module: str) -> Mapping[str, Any]:
    its = config.get(module)
    return {**config, **its} if isinstance(its, dict) else config


def _matrix(settings: Mapping[str, Any], tensors: Mapping[str, TensorEntry], module: str) -> EncodedTensor:
    mode = settings.get("mode") or "affine"
    weight = expect(tensors, f"{module}.weight", [torch.uint32])
    if len(weight.shape) not in (2, 3) or 0 in weight.shape:
        raise ValueError(f"tensor {weight.name!r} has shape {weight.shape}, which is no matrix")
    if mode in _FLOATS4:
        return _floats4(tensors, module, weight, mode)
    if mode != "affine":
        raise UnsupportedError(
            f"mlx of mode {mode!r} cannot be read", remedy=f"use affine or {' or '.join(_FLOATS4)}"
        )
    bits, group = bits_of(settings, "bits", _BITS), group_size(settings, "group_size")
    *lead, out, words = weight.shape
    width = words * _WORD // bits
    if words * _WORD % bits or not group or width % group:
        raise ValueError(f"tensor {weight.name!r} has rows of {words} words for {bits} bits in groups of {group}")
    parts = {
        "weight": _bytes(weight),
        "scales": expect(tensors, f"{module}.scales", FLOATS, (*lead, out, width // group)),
        "biases": expect(tensors, f"{module}.biases", FLOATS, (*lead, out, width // group)),
    }
    return EncodedTensor(weight.name, (*lead, out, width), Encoding("mlx", (("bits", bits), ("group", group))), parts)


def _floats4(tensors: Mapping[str, TensorEntry], module: str, weight: TensorEntry, mode: str) -> EncodedTensor:
    *lead, out, words = weight.shape
    width, block = words * 8, _FLOATS4[mode]
    if width % block:
        raise ValueError(f"tensor {weight.name!r} has rows of {width}, not of whole blocks of {block}")
    scales = expect(tensors, f"{module}.scales", [torch.uint8], (*lead, out, width // block))
    shape = (*lead, out, width)
    if mode == "mxfp4":
        blocks = replace(weight, dtype=torch.uint8, shape=(*lead, out, width // block, block // 2))
        return EncodedTensor(weight.name, shape, Encoding("mxfp4"), {"blocks": blocks, "scales": scales})
    parts = {"weight": _bytes(weight), "scale": replace(scales, dtype=torch.float8_e4m3fn)}
    return EncodedTensor(weight.name, shape, Encoding("nvfp4"), parts)


def _bytes(words: TensorEntry) -> TensorEntry:
    return replace(words, dtype=torch.uint8, shape=(*words.shape[:-1], words.shape[-1] * 4))
