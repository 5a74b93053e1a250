"""compressed-tensors, as llm-compressor writes it: integers and 8-bit floats, in one of several formats.

pack-quantized: `weight_packed` I32 [out, in * bits / 32] of 4 or 8 bits, `weight_scale` [out, groups],
`weight_zero_point` (I32 [out * bits / 32, groups], or I8 [out, groups] by older versions) unless symmetric, and
`weight_g_idx` I32 [in] where columns were grouped by activation; `weight_shape` repeats what the others say.
int-quantized, float-quantized, naive-quantized: `weight` I8 or F8_E4M3 [out, in], and `weight_scale`.
nvfp4-pack-quantized: `weight_packed` U8 [out, in / 2], 4-bit floats, `weight_scale` F8_E4M3 [out, in / 16], and
`weight_global_scale` F32 [1], which divides these. mxfp4-pack-quantized: the same without it, `weight_scale` U8
exponents [out, in / 32]. mixed-precision: each group says which of these it is in.

Weights only: what the configuration says of quantised activations and KV caches is not done.

https://github.com/vllm-project/compressed-tensors
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch

from moe_local.checkpoint.encoding import Encoding
from moe_local.checkpoint.header import TensorEntry
from moe_local.checkpoint.record import EncodedTensor
from moe_local.checkpoint.schemes.checks import (
    FLOATS,
    ModulePattern,
    assert_none_left,
    bits_of,
    boolean,
    expect,
    expect_matrix,
    group_size,
    section,
)
from moe_local.checkpoint.schemes.fp8 import FLOAT8, block_size, float4_matrix, float8_matrix
from moe_local.checkpoint.schemes.nvfp4 import nvfp4_matrix
from moe_local.errors import UnsupportedError

_NAIVE = ("int-quantized", "float-quantized", "naive-quantized")
_FLOATS4 = ("nvfp4-pack-quantized", "mxfp4-pack-quantized")
_FORMATS = ("pack-quantized", *_FLOATS4, *_NAIVE)
_BITS = {"pack-quantized": (4, 8), **dict.fromkeys(_FLOATS4, (4,))}
_STRATEGIES = ("tensor", "channel", "group")
_OF_ACTIVATIONS = (
    "input_scale", "input_zero_point", "input_global_scale", "output_scale", "output_zero_point",
    "k_scale", "v_scale",
)  # fmt: skip


def compressed_tensors(config: Mapping[str, Any], tensors: Mapping[str, TensorEntry]) -> list[EncodedTensor]:
    """The matrices of integers or 8-bit floats."""
    _assert_only_quantised(config)
    groups = _Groups(config)
    encoded = [_Module(name, groups.of(name), tensors).matrix() for name in _quantised(tensors)]
    used = {part.name for tensor in encoded for part in tensor.parts.values()}
    used |= {name for tensor in encoded for name in tensor.beside}
    assert_none_left(tensors, [".weight_scale", ".weight_global_scale", ".weight_zero_point", ".weight_g_idx"], used)
    return encoded


def _assert_only_quantised(config: Mapping[str, Any]) -> None:
    sparsity = section(config, "sparsity_config").get("format", "dense")
    if sparsity != "dense":
        raise UnsupportedError(
            f"compressed-tensors of sparsity {sparsity!r} cannot be read", remedy="use the dense weights"
        )
    if config.get("transform_config"):
        raise UnsupportedError("compressed-tensors with transforms cannot be read", remedy="use the plain weights")


def _quantised(tensors: Mapping[str, TensorEntry]) -> Iterator[str]:
    """Names of the modules whose weight is not as the model has it."""
    for name, entry in tensors.items():
        if name.endswith(".weight_packed"):
            yield name.removesuffix(".weight_packed")
        elif name.endswith(".weight") and entry.dtype in (*FLOAT8, torch.int8):
            yield name.removesuffix(".weight")


class _Groups:
    """The configuration's groups by what they target: names, `re:` and a pattern for names, or classes."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        groups = section(config, "config_groups")
        described = [section(groups, name) for name in groups]
        self._groups = [_Group(group, config.get("format")) for group in described if group.get("weights")]
        if not self._groups:
            raise ValueError("config_groups quantise no weights")

    def of(self, module: str) -> _Group:
        """The group of a quantised module. Raises ValueError if there is none."""
        if len(self._groups) == 1:
            return self._groups[0]
        for matches in (_Group.names, _Group.describes, _Group.takes_linear):
            for group in self._groups:
                if matches(group, module):
                    return group
        raise ValueError(f"no group of the configuration targets {module!r}")


class _Group:
    """One group: its targets, and how it quantises weights."""

    def __init__(self, group: Mapping[str, Any], common_format: object) -> None:
        targets = group["targets"]
        if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
            raise ValueError(f"targets are {targets!r}")
        self._targets: list[str] = targets
        self._patterns = [ModulePattern(t.removeprefix("re:")) for t in targets if t.startswith("re:")]
        self.format = group.get("format") or common_format
        if self.format not in _FORMATS:
            raise UnsupportedError(
                f"compressed-tensors of format {self.format!r} cannot be read",
                remedy=f"use one of {', '.join(_FORMATS)}",
            )
        weights = section(group, "weights")
        self.bits = bits_of(weights, "num_bits", _BITS.get(self.format, (8,)))
        self.symmetric = boolean(weights, "symmetric", True)
        self.is_float = weights.get("type", "int") == "float" and self.format != "pack-quantized"
        self.strategy = weights.get("strategy") or _default_strategy(weights)
        if self.format in _FLOATS4:
            self.strategy = "group"  # "tensor_group" to compressed-tensors: the format says how many share a scale
        if self.strategy not in (*_STRATEGIES, *(["block"] if self.is_float else [])):
            raise UnsupportedError(
                f"compressed-tensors of strategy {self.strategy!r} cannot be read",
                remedy=f"use one of {', '.join(_STRATEGIES)}",
            )
        self.size = group_size(weights, "group_size") if self.strategy == "group" else 0
        self.block = block_size(weights.get("block_structure")) if self.strategy == "block" else None

    def names(self, module: str) -> bool:
        return module in self._targets

    def describes(self, module: str) -> bool:
        return any(pattern.match(module) for pattern in self._patterns)

    def takes_linear(self, module: str) -> bool:
        return "Linear" in self._targets


def _default_strategy(weights: Mapping[str, Any]) -> str:
    size = weights.get("group_size")
    return "tensor" if size is None else "channel" if size == -1 else "group"


class _Module:
    """The tensors of one quantised module."""

    def __init__(self, name: str, group: _Group, tensors: Mapping[str, TensorEntry]) -> None:
        self._name = name
        self._group = group
        self._tensors = tensors

    def matrix(self) -> EncodedTensor:
        if self._group.format == "pack-quantized":
            return self._packed()
        if self._group.format == "nvfp4-pack-quantized":
            names = [f"{self._name}.weight_{part}" for part in ("packed", "scale", "global_scale")]
            found = nvfp4_matrix(self._tensors, *names, name=f"{self._name}.weight", divides=True)
            return replace(found, beside=self._beside(found.parts))
        if self._group.format == "mxfp4-pack-quantized":
            return self._mxfp4()
        return self._float8() if self._group.is_float else self._int8()

    def _packed(self) -> EncodedTensor:
        bits = self._group.bits
        weight = expect_matrix(self._tensors, f"{self._name}.weight_packed", [torch.int32])
        out, words = weight.shape
        width = words * 32 // bits
        if self._group.size:
            # Only its groups tell how much of the last word is used.
            scale = expect_matrix(self._tensors, f"{self._name}.weight_scale", FLOATS)
            width = scale.shape[1] * self._group.size
            if -(-width * bits // 32) != words:
                raise ValueError(f"tensor {scale.name!r} has {scale.shape[1]} groups for {words} words a row")
        parts = {"weight": weight, **self._scales(out, width, -(-out * bits // 32))}
        if f"{self._name}.weight_g_idx" in self._tensors:
            parts["g_idx"] = expect(self._tensors, f"{self._name}.weight_g_idx", [torch.int32], (width,))
        encoding = Encoding("packed", (("bits", bits), ("group", self._group.size)))
        return self._encoded((out, width), encoding, parts)

    def _mxfp4(self) -> EncodedTensor:
        packed, scale = f"{self._name}.weight_packed", f"{self._name}.weight_scale"
        found = float4_matrix(self._tensors, packed, scale, torch.uint8)
        return replace(found, name=f"{self._name}.weight", beside=self._beside(found.parts))

    def _int8(self) -> EncodedTensor:
        weight = expect_matrix(self._tensors, f"{self._name}.weight", [torch.int8])
        out, width = weight.shape
        parts = {"weight": weight, **self._scales(out, width)}
        return self._encoded((out, width), Encoding("signed-int8", (("group", self._group.size),)), parts)

    def _float8(self) -> EncodedTensor:
        if not self._group.symmetric:
            raise ValueError("8-bit floats are quantised asymmetrically")
        block = (1, self._group.size) if self._group.size else self._group.block
        name, scale = f"{self._name}.weight", f"{self._name}.weight_scale"
        return float8_matrix(self._tensors, name, scale, block, self._beside({}))

    def _scales(self, out: int, width: int, words: int | None = None) -> dict[str, TensorEntry]:
        """`scale`, and `zero_point` unless symmetric: of the same shape, or packed in `words` along the rows."""
        size = self._group.size
        if size and width % size:
            raise ValueError(f"{self._name} has rows of {width} in groups of {size}")
        groups = width // (size or width)
        shapes: dict[str, list[tuple[int, ...]]] = {
            "tensor": [(), (1,)],
            "channel": [(out,), (out, 1)],
            "group": [(out, groups)],
        }
        name = f"{self._name}.weight_scale"
        scale = expect(self._tensors, name, FLOATS, *shapes[self._group.strategy])
        if self._group.symmetric:
            return {"scale": scale}
        name = f"{self._name}.weight_zero_point"
        if words is not None and name in self._tensors and self._tensors[name].dtype == torch.int32:
            zeros = expect(self._tensors, name, [torch.int32], (words, groups))
        else:
            zeros = expect(self._tensors, name, [torch.int8], scale.shape)
        return {"scale": scale, "zero_point": zeros}

    def _encoded(self, shape: tuple[int, int], encoding: Encoding, parts: Mapping[str, TensorEntry]) -> EncodedTensor:
        return EncodedTensor(f"{self._name}.weight", shape, encoding, parts, beside=self._beside(parts))

    def _beside(self, parts: Mapping[str, TensorEntry]) -> tuple[str, ...]:
        used = {part.name for part in parts.values()}
        others = ("weight_shape", "weight_zero_point", *_OF_ACTIVATIONS)
        names = [f"{self._name}.{other}" for other in others]
        return tuple(name for name in names if name in self._tensors and name not in used)
