"""modelopt, NVIDIA's Model-Optimizer: 4-bit (NVFP4) and 8-bit floats, one of them or both in a checkpoint.

NVFP4: `weight` U8 [out, in / 2], `weight_scale` F8_E4M3 [out, in / 16], `weight_scale_2` F32, which multiplies these.
FP8: `weight` F8_E4M3 [out, in], and `weight_scale`, one number, or one a row. Experts that are fused have
`NAME`, `NAME_weight_scale` and `NAME_weight_scale_2` with a leading axis. What a module is held as its tensors say.

Weights only: `input_scale`, and `k_scale` and `v_scale` of KV caches, are left alone.

https://github.com/NVIDIA/Model-Optimizer
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from moe_local.checkpoint.header import TensorEntry
from moe_local.checkpoint.record import EncodedTensor
from moe_local.checkpoint.schemes.checks import assert_none_left, section
from moe_local.checkpoint.schemes.fp8 import FLOAT8, float8_matrix
from moe_local.checkpoint.schemes.nvfp4 import nvfp4_matrix
from moe_local.errors import UnsupportedError

_ALGORITHMS = (
    "NVFP4", "W4A16_NVFP4", "W4A8_NVFP4_FP8", "FP8", "FP8_PER_CHANNEL_PER_TOKEN", "MIXED_PRECISION",
)  # fmt: skip
_SECOND = "_scale_2"
_BESIDE = ("input_scale", "output_scale", "k_scale", "v_scale", "k_bias", "v_bias")


def modelopt(config: Mapping[str, Any], tensors: Mapping[str, TensorEntry]) -> list[EncodedTensor]:
    """The matrices of 4-bit or 8-bit floats."""
    _assert_supported(config, tensors)
    encoded = [_float4(tensors, name) for name in tensors if name.endswith(f"weight{_SECOND}")]
    taken = {part.name for tensor in encoded for part in tensor.parts.values()}
    floats = (name for name, entry in tensors.items() if entry.dtype in FLOAT8 and not name.endswith("_scale"))
    encoded += [_float8(tensors, name) for name in floats if name not in taken]
    used = {part.name for tensor in encoded for part in tensor.parts.values()}
    assert_none_left(tensors, ["weight_scale", f"weight{_SECOND}"], used)
    return encoded


def _assert_supported(config: Mapping[str, Any], tensors: Mapping[str, TensorEntry]) -> None:
    algorithm = config.get("quant_algo") or section(config, "quantization").get("quant_algo")
    if algorithm is not None and str(algorithm).upper() not in _ALGORITHMS:
        raise UnsupportedError(
            f"modelopt of algorithm {algorithm!r} cannot be read", remedy=f"use one of {', '.join(_ALGORITHMS)}"
        )
    smoothed = next((name for name in tensors if name.endswith("pre_quant_scale")), None)
    if smoothed is not None:
        raise UnsupportedError(
            f"modelopt with scaled inputs ({smoothed!r}) cannot be read", remedy="use a checkpoint of plain NVFP4"
        )


def _float4(tensors: Mapping[str, TensorEntry], second: str) -> EncodedTensor:
    scale = second.removesuffix("_2")
    weight = scale.removesuffix("_scale")
    if weight not in tensors:  # of fused experts, whose tensor is called as the parameter
        weight = weight.removesuffix("_weight")
    found = nvfp4_matrix(tensors, weight, scale, second, name=weight)
    return replace(found, beside=_beside(tensors, weight))


def _float8(tensors: Mapping[str, TensorEntry], name: str) -> EncodedTensor:
    names = [f"{name}_scale", f"{name}_weight_scale"]
    scale = next((other for other in names if other in tensors), names[0])
    return float8_matrix(tensors, name, scale, None, _beside(tensors, name))


def _beside(tensors: Mapping[str, TensorEntry], weight: str) -> tuple[str, ...]:
    """Tensors of the module of a weight that are of its inputs and outputs."""
    prefix = weight.removesuffix("weight") if weight.endswith(".weight") else f"{weight}_"
    return tuple(prefix + other for other in _BESIDE if prefix + other in tensors)
