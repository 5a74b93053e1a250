"""gptq: integers of 4 or 8 bits, packed along the columns by AutoGPTQ, GPTQModel and others.

`qweight` I32 [in * bits / 32, out], `qzeros` I32 [groups, out * bits / 32], `scales` [groups, out], and `g_idx` I32
[in], the group of each column, which ancient checkpoints lack. The first version of the format, "gptq", stores zeros
less one; "gptq_v2" stores them as they are. Exceptions by module (`dynamic`) may only be modules left as they are.

https://github.com/ModelCloud/GPTQModel, https://github.com/AutoGPTQ/AutoGPTQ
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from moe_local.checkpoint.header import TensorEntry
from moe_local.checkpoint.record import EncodedTensor, Encoding
from moe_local.checkpoint.schemes.checks import (
    FLOATS,
    assert_none_left,
    bits_of,
    expect,
    expect_matrix,
    group_size,
    section,
)
from moe_local.errors import UnsupportedError

_LESS = {"gptq": 1, "gptq_v2": 0}  # what zeros are stored without


def gptq(config: Mapping[str, Any], tensors: Mapping[str, TensorEntry]) -> list[EncodedTensor]:
    """The matrices of integers."""
    bits = bits_of(config, "bits", (4, 8))
    group = group_size(config, "group_size")
    less = _LESS[_version(config)]
    _assert_uniform(config)
    options = (("bits", bits), ("group", group), ("less", less))
    encoding = Encoding("gptq", options)
    modules = [name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")]
    encoded = [_matrix(tensors, module, encoding, bits, group) for module in modules]
    used = {part.name for tensor in encoded for part in tensor.parts.values()}
    assert_none_left(tensors, [".qzeros", ".scales", ".g_idx"], used)
    return encoded


def _version(config: Mapping[str, Any]) -> str:
    version = config.get("checkpoint_format") or config.get("format") or "gptq"
    if version not in _LESS or config.get("is_marlin_format"):
        raise UnsupportedError(
            f"gptq of format {version!r}{', for marlin,' if config.get('is_marlin_format') else ''} cannot be read",
            remedy=f"use one of {', '.join(_LESS)}",
        )
    return str(version)


def _assert_uniform(config: Mapping[str, Any]) -> None:
    """Raises UnsupportedError for modules quantised in another way than the rest."""
    for pattern, change in section(config, "dynamic").items():
        if not pattern.startswith("-:") and change:
            raise UnsupportedError(
                f"gptq with settings of their own for modules {pattern!r} cannot be read",
                remedy="use a checkpoint quantised in one way",
            )


def _matrix(
    tensors: Mapping[str, TensorEntry], module: str, encoding: Encoding, bits: int, group: int
) -> EncodedTensor:
    qweight = expect_matrix(tensors, f"{module}.qweight", [torch.int32])
    words, out = qweight.shape
    width = words * 32 // bits
    groups = -(-width // group) if group else 1
    if out * bits % 32:
        raise ValueError(f"tensor {qweight.name!r} has {out} outputs, whose zeros fill no whole words")
    parts = {
        "qweight": qweight,
        "qzeros": expect(tensors, f"{module}.qzeros", [torch.int32], (groups, out * bits // 32)),
        "scales": expect(tensors, f"{module}.scales", FLOATS, (groups, out)),
    }
    if f"{module}.g_idx" in tensors:
        parts["g_idx"] = expect(tensors, f"{module}.g_idx", [torch.int32], (width,))
    return EncodedTensor(f"{module}.weight", (out, width), encoding, parts)
