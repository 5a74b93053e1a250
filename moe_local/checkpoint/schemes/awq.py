"""awq, of the version "gemm": 4-bit integers, packed by AutoAWQ.

`qweight` I32 [in, out / 8], `qzeros` I32 [groups, out / 8], `scales` [groups, out]; of eight outputs a word has
number 0, 2, 4, 6, 1, 3, 5 and 7, the first in its lowest bits.

https://github.com/casper-hansen/AutoAWQ
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from moe_local.checkpoint.encoding import Encoding
from moe_local.checkpoint.header import TensorEntry
from moe_local.checkpoint.record import EncodedTensor
from moe_local.checkpoint.schemes.checks import (
    FLOATS,
    assert_none_left,
    bits_of,
    expect,
    expect_matrix,
    group_size,
)
from moe_local.errors import UnsupportedError


def awq(config: Mapping[str, Any], tensors: Mapping[str, TensorEntry]) -> list[EncodedTensor]:
    """The matrices of integers."""
    bits_of(config, "bits" if "bits" in config else "w_bit", (4,))
    group = group_size(config, "group_size" if "group_size" in config else "q_group_size")
    version = str(config.get("version") or config.get("format") or "gemm")
    if version.lower() != "gemm":
        raise UnsupportedError(f"awq of version {version!r} cannot be read", remedy="use one of version 'gemm'")
    return awq_matrices(tensors, lambda module: group)


def awq_matrices(tensors: Mapping[str, TensorEntry], group_of: Callable[[str], int]) -> list[EncodedTensor]:
    """The matrices of every module; `group_of` gives how many of its columns share a scale, 0 for all."""
    modules = [name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")]
    encoded = [_matrix(tensors, module, group_of(module)) for module in modules]
    used = {part.name for tensor in encoded for part in tensor.parts.values()}
    assert_none_left(tensors, [".qzeros", ".scales"], used)
    return encoded


def _matrix(tensors: Mapping[str, TensorEntry], module: str, group: int) -> EncodedTensor:
    qweight = expect_matrix(tensors, f"{module}.qweight", [torch.int32])
    width, words = qweight.shape
    if group and width % group:
        raise ValueError(f"tensor {qweight.name!r} has rows of {width} in groups of {group}")
    groups, out = width // (group or width), words * 8
    parts = {
        "qweight": qweight,
        "qzeros": expect(tensors, f"{module}.qzeros", [torch.int32], (groups, words)),
        "scales": expect(tensors, f"{module}.scales", FLOATS, (groups, out)),
    }
    return EncodedTensor(f"{module}.weight", (out, width), Encoding("awq", (("group", group),)), parts)
