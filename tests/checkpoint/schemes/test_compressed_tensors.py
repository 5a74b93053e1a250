"""compressed-tensors checkpoints, written by that library.

It holds experts one by one: llm-compressor takes fused ones apart before it quantises them, so there is no fused
layout.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from moe_local.checkpoint.files import Checkpoint
from moe_local.checkpoint.record import EncodedTensor
from moe_local.checkpoint.schemes import understood
from moe_local.errors import CheckpointError, MoeLocalError, UnsupportedError
from moe_local.testing.quantised import assert_quantised_runs, decode_checkpoint, is_linear, rewrite_checkpoint

pytest.importorskip("compressed_tensors")

from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from compressed_tensors.quantization import QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams


class _Library:
    """One module at a time, by the library's own compressor of `form`."""

    def __init__(self, form: str, **weights: Any) -> None:
        self.group = {"targets": ["Linear"], "weights": {"num_bits": 8, "dynamic": False, **weights}}
        self.config = {
            "quant_method": "compressed-tensors",
            "format": form,
            "config_groups": {"group_0": {**self.group, "input_activations": None}},
            "ignore": ["lm_head", "re:.*gate$"],
        }
        self._scheme = QuantizationScheme(**self.group)
        self._compressor = BaseCompressor.get_value_from_registry(form)

    def quantise(self, name: str, weight: Tensor) -> Mapping[str, Tensor] | None:
        if not is_linear(name, weight):
            return None
        scale, zero = calculate_qparams(*self._extremes(weight), self._scheme.weights)
        state = {"weight": weight, "weight_scale": scale, "weight_zero_point": zero}
        prefix = name.removesuffix("weight")
        return {prefix + key: part for key, part in self._compressor.compress(state, self._scheme).items()}

    def _extremes(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        args = self._scheme.weights
        if args.strategy == "tensor":
            return weight.min().view(1), weight.max().view(1)
        if args.strategy == "block":
            rows, columns = args.block_structure
            blocks = weight.view(weight.shape[0] // rows, rows, weight.shape[1] // columns, columns)
            return blocks.amin(dim=(1, 3)), blocks.amax(dim=(1, 3))
        grouped = weight.view(len(weight), -1, args.group_size or weight.shape[1])
        return grouped.amin(dim=-1), grouped.amax(dim=-1)

    def dequantise(self, name: str, parts: Mapping[str, Tensor]) -> Tensor:
        state = {key.removeprefix(name.removesuffix("weight")): part for key, part in parts.items()}
        decoded: Tensor = self._compressor.decompress(state, self._scheme)["weight"]
        return decoded


GROUP = {"strategy": "group", "group_size": 16}
LIBRARIES = {
    "w4a16": _Library("pack-quantized", num_bits=4, **GROUP),
    "w4a16-asymmetric": _Library("pack-quantized", num_bits=4, symmetric=False, **GROUP),
    "w4a16-channel-asymmetric": _Library("pack-quantized", num_bits=4, symmetric=False, strategy="channel"),
    "w8a16": _Library("pack-quantized", **GROUP),
    "w8a16-channel": _Library("pack-quantized", strategy="channel"),
    "w8a16-asymmetric": _Library("pack-quantized", symmetric=False, **GROUP),
    "int8-channel": _Library("int-quantized", strategy="channel"),
    "int8-tensor": _Library("int-quantized", strategy="tensor"),
    "int8-asymmetric": _Library("int-quantized", strategy="channel", symmetric=False),
    "int8-group": _Library("naive-quantized", **GROUP),
    "fp8-channel": _Library("float-quantized", type="float", strategy="channel"),
    "fp8-tensor": _Library("float-quantized", type="float", strategy="tensor"),
    "fp8-block": _Library("float-quantized", type="float", strategy="block", block_structure=[16, 16]),
    "fp8-group": _Library("naive-quantized", type="float", **GROUP),
}


@pytest.mark.parametrize("library", LIBRARIES.values(), ids=LIBRARIES.keys())
@pytest.mark.parametrize("model_type", ["qwen3_moe", "mixtral"])
def test_as_the_library_writes_them(model_type: str, library: _Library, tmp_path: Path) -> None:
    assert_quantised_runs(model_type, tmp_path, library.quantise, library.dequantise, library.config)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("library", LIBRARIES.values(), ids=LIBRARIES.keys())
def test_numbers_of_16_bits_are_the_library_s(
    mixtral: Path, library: _Library, dtype: torch.dtype, tmp_path: Path
) -> None:
    """It multiplies in the type of the scales, which is the model's."""
    wanted: dict[str, Tensor] = {}

    def replace(name: str, tensor: Tensor) -> Mapping[str, Tensor]:
        parts = library.quantise(name, tensor.to(dtype))
        if parts is None:
            return {name: tensor.to(dtype)}
        wanted[name] = library.dequantise(name, parts)
        return parts

    rewrite_checkpoint(mixtral, tmp_path, replace, library.config)
    decoded = decode_checkpoint(tmp_path, dtype)
    assert wanted
    for name, weight in wanted.items():
        assert weight.dtype == dtype
        assert torch.equal(decoded[name], weight), name


def test_columns_grouped_by_activation(tmp_path: Path) -> None:
    """Removed from the library in 2026; checkpoints of before have it."""
    library = LIBRARIES["w4a16-asymmetric"]
    wanted: dict[str, Tensor] = {}

    def quantise(name: str, weight: Tensor) -> Mapping[str, Tensor] | None:
        """Quantised with the columns in another order, and stored in the model's."""
        order = torch.randperm(weight.shape[-1], generator=torch.Generator().manual_seed(0))
        parts = library.quantise(name, weight[..., order])
        if parts is None:
            return None
        place, prefix = torch.argsort(order), name.removesuffix("weight")
        wanted[name] = library.dequantise(name, parts)[:, place]
        codes = unpack_from_int32(parts[f"{prefix}weight_packed"], 4, weight.shape)[:, place]
        return {
            **parts,
            f"{prefix}weight_packed": pack_to_int32(codes, 4),
            f"{prefix}weight_g_idx": (place // 16).int(),
        }

    assert_quantised_runs("qwen3_moe", tmp_path, quantise, lambda name, parts: wanted[name], library.config)


def test_zero_points_as_older_versions_had_them(tmp_path: Path) -> None:
    library = LIBRARIES["w4a16-asymmetric"]
    wanted: dict[str, Tensor] = {}

    def quantise(name: str, weight: Tensor) -> Mapping[str, Tensor] | None:
        parts = library.quantise(name, weight)
        if parts is None:
            return None
        prefix = name.removesuffix("weight")
        wanted[name] = library.dequantise(name, parts)
        zeros, shape = parts[f"{prefix}weight_zero_point"], parts[f"{prefix}weight_scale"].shape
        return {**parts, f"{prefix}weight_zero_point": unpack_from_int32(zeros, 4, shape, packed_dim=0)}

    assert_quantised_runs("mixtral", tmp_path, quantise, lambda name, parts: wanted[name], library.config)


def test_groups_by_target(tmp_path: Path) -> None:
    """Names go before patterns, and patterns before classes."""
    attention, experts = LIBRARIES["fp8-channel"], LIBRARIES["w4a16"]

    def chosen(name: str) -> _Library:
        return attention if "self_attn" in name else experts

    config = {
        **experts.config,
        "format": "mixed-precision",
        "config_groups": {
            "experts": {**experts.group, "format": "pack-quantized"},
            "attention": {**attention.group, "format": "float-quantized", "targets": ["re:.*self_attn.*"]},
        },
    }
    assert_quantised_runs(
        "qwen3_moe",
        tmp_path,
        lambda name, weight: chosen(name).quantise(name, weight),
        lambda name, parts: chosen(name).dequantise(name, parts),
        config,
    )


VICTIM = "model.layers.1.mlp.experts.3.gate_proj."


def _spoilt(qwen: Path, directory: Path, library: _Library, changes: Mapping[str, Tensor | None]) -> Checkpoint:
    def replace(name: str, tensor: Tensor) -> Mapping[str, Tensor]:
        parts = dict(library.quantise(name, tensor) or {name: tensor})
        if name == f"{VICTIM}weight":
            for key, instead in changes.items():
                parts.pop(VICTIM + key, None)
                parts |= {} if instead is None else {VICTIM + key: instead}
        return parts

    return Checkpoint.open(rewrite_checkpoint(qwen, directory, replace, library.config))


BAD: list[tuple[str, dict[str, Tensor | None], str]] = [
    ("w4a16", {"weight_scale": None}, "weight_scale' is missing"),
    ("w4a16", {"weight_scale": torch.ones(32, 3)}, "has 3 groups for 8 words a row"),
    ("w4a16", {"weight_scale": torch.ones(16, 4)}, r"has shape \(16, 4\), not \(32, 4\)"),
    ("w4a16", {"weight_packed": torch.ones(32, 8)}, "is of type float32, not int32"),
    ("w4a16", {"weight_packed": torch.ones(2, 32, 8, dtype=torch.int32)}, "is no matrix"),
    ("w4a16", {"weight_packed": None}, "weight_scale' belongs to no quantised matrix"),
    ("w4a16-asymmetric", {"weight_zero_point": None}, "weight_zero_point' is missing"),
    ("w4a16-asymmetric", {"weight_zero_point": torch.ones(3, 4).int()}, r"not \(4, 4\)"),
    ("w4a16", {"weight_g_idx": torch.ones(3).int()}, r"not \(64,\)"),
    ("int8-channel", {"weight_scale": torch.ones(32, 2)}, "has shape"),
    ("int8-asymmetric", {"weight_zero_point": torch.ones(32, 1).int()}, "is of type int32"),
    ("fp8-block", {"weight_scale": torch.ones(32, 1)}, r"not \(2, 4\)"),
]


@pytest.mark.parametrize(("library", "changes", "message"), BAD)
def test_bad_tensors_are_named(
    qwen: Path, tmp_path: Path, library: str, changes: dict[str, Tensor | None], message: str
) -> None:
    checkpoint = _spoilt(qwen, tmp_path, LIBRARIES[library], changes)
    with pytest.raises(CheckpointError, match=message):
        understood(checkpoint)


def _configured(**changes: Any) -> dict[str, Any]:
    weights = {"num_bits": 4, "type": "int", "symmetric": True, **GROUP}
    weights |= changes.pop("weights", {})
    group = {"targets": ["Linear"], "weights": weights, **changes.pop("group", {})}
    config = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"group_0": group}}
    return {**config, **changes}


CONFIGS: list[tuple[dict[str, Any], type[MoeLocalError], str]] = [
    (_configured(weights={"num_bits": 3}), UnsupportedError, "3 bits"),
    (_configured(weights={"num_bits": "4"}), CheckpointError, "num_bits is '4'"),
    (_configured(weights={"group_size": 0}), CheckpointError, "group_size is 0"),
    (_configured(weights={"strategy": "attn_head"}), UnsupportedError, "attn_head"),
    (_configured(weights={"symmetric": 1}), CheckpointError, "symmetric is 1"),
    (_configured(format="marlin-24"), UnsupportedError, "marlin-24"),
    (_configured(sparsity_config={"format": "sparse-24-bitmask"}), UnsupportedError, "sparse-24"),
    (_configured(transform_config={"config_groups": {"R1": {}}}), UnsupportedError, "transforms"),
    (_configured(config_groups=[]), CheckpointError, r"config_groups is \[\]"),
    (_configured(config_groups={}), CheckpointError, "quantise no weights"),
    (_configured(config_groups={"a": ["Linear"]}), CheckpointError, "a is"),
    (_configured(group={"targets": "Linear"}), CheckpointError, "targets are"),
    (_configured(group={"weights": 4}), CheckpointError, "weights is 4"),
]


@pytest.mark.parametrize(("config", "error", "message"), CONFIGS)
def test_bad_configurations_are_named(
    qwen: Path, tmp_path: Path, config: dict[str, Any], error: type[MoeLocalError], message: str
) -> None:
    rewrite_checkpoint(qwen, tmp_path, lambda name, tensor: {name: tensor}, config)
    with pytest.raises(error, match=message):
        understood(Checkpoint.open(tmp_path))


@pytest.mark.parametrize(
    ("target", "message"), [("re:.*nothing", "no group of the configuration"), ("re:(", "is not a pattern")]
)
def test_a_module_of_no_group_is_named(qwen: Path, tmp_path: Path, target: str, message: str) -> None:
    library = LIBRARIES["w4a16"]
    config = {**library.config, "config_groups": {k: {**library.group, "targets": [target]} for k in "ab"}}
    rewrite_checkpoint(qwen, tmp_path, lambda n, t: library.quantise(n, t) or {n: t}, config)
    with pytest.raises(CheckpointError, match=message):
        understood(Checkpoint.open(tmp_path))


def test_what_is_ignored_stays_as_it_is(qwen: Path, tmp_path: Path) -> None:
    sources = understood(_spoilt(qwen, tmp_path, LIBRARIES["w4a16"], {}))
    assert isinstance(sources["model.layers.0.mlp.experts.0.up_proj.weight"], EncodedTensor)
    assert not isinstance(sources["lm_head.weight"], EncodedTensor)
    assert not any(name.endswith(("_packed", "_scale", "_shape")) for name in sources)
