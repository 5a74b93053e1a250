"""nvfp4 checkpoints by ModelOpt and by compressed-tensors, alone and beside other formats.

Their libraries need a GPU, or years of dependencies: the numbers are made here by the description of the format.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from moe_local.checkpoint.files import Checkpoint
from moe_local.checkpoint.schemes import understood
from moe_local.errors import CheckpointError, MoeLocalError, UnsupportedError
from moe_local.store import first_use, pack, verify
from moe_local.store.job import relative_error
from moe_local.testing.quantised import assert_quantised_runs, assert_runs_as, is_linear, rewrite_checkpoint

VALUES = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


class Nvfp4:
    """A matrix in 4-bit floats: `weight` is what it means where its one number multiplies."""

    def __init__(self, weight: Tensor) -> None:
        rows = weight.view(len(weight), -1, 16)
        self.whole = weight.abs().max() / (6 * 448)
        self.scale = (rows.abs().amax(-1) / 6 / self.whole).to(torch.float8_e4m3fn)
        steps = self.scale.float() * self.whole
        codes = ((rows / steps[..., None]).abs()[..., None] - VALUES).abs().argmin(-1)
        sign = (rows < 0).long()
        self.weight = self.at(steps, codes, sign)
        inverse = 1 / self.whole
        self.divided = self.at(self.scale.float() / inverse, codes, sign)
        both = (codes | sign << 3).view(weight.shape).to(torch.uint8)
        self.packed = both[:, 0::2] | both[:, 1::2] << 4

    def at(self, steps: Tensor, codes: Tensor, sign: Tensor) -> Tensor:
        return (VALUES[codes] * (1 - 2 * sign) * steps[..., None]).flatten(1)


class Writer:
    def __init__(self, kind: Callable[[str], str], **config: Any) -> None:
        self.config = config
        self._kind = kind
        self._wanted: dict[str, Tensor] = {}

    def quantise(self, name: str, tensor: Tensor) -> Mapping[str, Tensor] | None:
        if not is_linear(name, tensor) or self._kind(name) == "plain":
            return None
        stem = name.removesuffix("weight")
        made = Nvfp4(tensor)
        match self._kind(name):
            case "modelopt":
                self._wanted[name] = made.weight
                parts = {"weight": made.packed, "weight_scale": made.scale, "weight_scale_2": made.whole.view(())}
                parts |= {"input_scale": torch.ones(()), "k_scale": torch.ones(())}
            case "compressed":
                self._wanted[name] = made.divided
                parts = {"weight_packed": made.packed, "weight_scale": made.scale}
                parts |= {"weight_global_scale": (1 / made.whole).view(1), "input_global_scale": torch.ones(1)}
            case "fp8":
                scale = tensor.abs().max() / 448
                codes = (tensor / scale).to(torch.float8_e4m3fn)
                self._wanted[name] = codes.float() * scale
                parts = {"weight": codes, "weight_scale": scale.view(()), "input_scale": torch.ones(())}
            case _:
                scale = tensor.abs().amax(1, keepdim=True) / 448
                codes = (tensor / scale).to(torch.float8_e4m3fn)
                self._wanted[name] = codes.float() * scale
                parts = {"weight": codes, "weight_scale": scale}
        return {stem + part: value for part, value in parts.items()}

    def dequantise(self, name: str, parts: Mapping[str, Tensor]) -> Tensor:
        return self._wanted[name]


FLOAT4 = {"num_bits": 4, "type": "float", "symmetric": True, "strategy": "tensor_group", "group_size": 16}
FLOAT8 = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel"}


def _mixed(name: str) -> str:
    return "fp8" if "down_proj" in name else "plain" if ".experts.1.up" in name else "modelopt"


WRITERS = {
    "modelopt": Writer(lambda name: "modelopt", quant_method="modelopt", quant_algo="NVFP4"),
    "modelopt-nested": Writer(
        lambda name: "plain" if "self_attn" in name else "modelopt",
        quant_method="modelopt",
        quantization={"quant_algo": "NVFP4", "exclude_modules": ["*self_attn*"]},
    ),
    "modelopt-fp8": Writer(lambda name: "fp8", quant_method="modelopt", quant_algo="FP8"),
    "modelopt-both": Writer(_mixed, quant_method="modelopt", quant_algo="MIXED_PRECISION", quantized_layers={}),
    "compressed-tensors": Writer(
        lambda name: "compressed",
        quant_method="compressed-tensors",
        format="nvfp4-pack-quantized",
        config_groups={"group_0": {"targets": ["Linear"], "weights": FLOAT4}},
    ),
    "compressed-tensors-both": Writer(
        lambda name: "channels" if "self_attn" in name or "down_proj" in name else "compressed",
        quant_method="compressed-tensors",
        format="mixed-precision",
        config_groups={
            "group_0": {"format": "nvfp4-pack-quantized", "targets": ["Linear"], "weights": FLOAT4},
            "group_1": {
                "format": "float-quantized", "targets": ["re:.*self_attn.*", "re:.*down_proj$"], "weights": FLOAT8,
            },
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS.keys())
def test_every_variant(writer: Writer, tmp_path: Path) -> None:
    quantised = assert_quantised_runs("qwen3_moe", tmp_path, writer.quantise, writer.dequantise, writer.config)
    job = first_use.plan(quantised, first_use.choose(dense="keep"))
    if "nvfp4" in job.expert_formats and "fp8" not in job.expert_formats:
        assert relative_error(job) == 0
    store = pack(job, tmp_path / "store")
    assert verify(store) == []
    if job.expert_formats.startswith("nvfp4") and "and" not in job.expert_formats:
        assert_runs_as("qwen3_moe", store, tmp_path / "plain")


def test_settings_in_a_file_of_their_own(tmp_path: Path) -> None:
    writer = WRITERS["modelopt"]
    quantised = assert_quantised_runs("mixtral", tmp_path, writer.quantise, writer.dequantise, writer.config)
    config = json.loads((quantised / "config.json").read_text())
    del config["quantization_config"]
    (quantised / "config.json").write_text(json.dumps(config))
    beside = {
        "producer": {"name": "modelopt"},
        "quantization": {"quant_algo": "NVFP4", "exclude_modules": ["lm_head"]},
    }
    (quantised / "hf_quant_config.json").write_text(json.dumps(beside))
    assert_runs_as("mixtral", quantised, tmp_path / "plain")
    store = pack(first_use.plan(quantised, first_use.choose()), tmp_path / "store")
    assert not (store / "hf_quant_config.json").exists()


@pytest.mark.parametrize("shared", [False, True])
def test_fused_experts(shared: bool, tmp_path: Path) -> None:
    """granitemoe has an axis of experts: so have the tensors of each, or all share their one number."""
    wanted: dict[str, Tensor] = {}

    def quantise(name: str, tensor: Tensor) -> Mapping[str, Tensor] | None:
        if tensor.ndim != 3:
            return None
        made = [Nvfp4(matrix) for matrix in tensor]
        if shared:
            whole = Nvfp4(tensor.flatten(0, 1))
            parts = {"": whole.packed, "_scale": whole.scale}
            wanted[name] = whole.weight.view(tensor.shape)
            stacked = {name + key: part.view(len(tensor), -1, part.shape[1]) for key, part in parts.items()}
            return {**stacked, f"{name}_scale_2": whole.whole.view(())}
        wanted[name] = torch.stack([m.weight for m in made])
        return {
            name: torch.stack([m.packed for m in made]),
            f"{name}_scale": torch.stack([m.scale for m in made]),
            f"{name}_scale_2": torch.stack([m.whole for m in made]),
        }

    from moe_local.testing import architecture, write_tiny_checkpoint

    original = write_tiny_checkpoint(architecture("granitemoe"), tmp_path / "original")
    config = {"quant_method": "modelopt", "quant_algo": "NVFP4"}
    quantised = rewrite_checkpoint(original, tmp_path / "quantised", lambda n, t: quantise(n, t) or {n: t}, config)
    plain = rewrite_checkpoint(original, tmp_path / "plain", lambda n, t: {n: wanted.get(n, t)}, None)
    assert wanted
    assert_runs_as("granitemoe", quantised, plain)


BAD: list[tuple[dict[str, Any], dict[str, Tensor | None], type[MoeLocalError], str]] = [
    ({"quant_algo": "W4A16_AWQ"}, {}, UnsupportedError, "W4A16_AWQ"),
    ({}, {"pre_quant_scale": torch.ones(64)}, UnsupportedError, "pre_quant_scale"),
    ({}, {"weight_scale": None}, CheckpointError, "weight_scale' is missing"),
    ({}, {"weight_scale": torch.ones(32, 3)}, CheckpointError, "is of type float32"),
    ({}, {"weight_scale_2": torch.ones(32)}, CheckpointError, "has shape"),
    ({}, {"weight": torch.zeros(32, 30).byte()}, CheckpointError, "whole blocks"),
    ({}, {"weight_scale_2": None}, CheckpointError, "belongs to no quantised matrix"),
]


@pytest.mark.parametrize(("changes", "tensors", "error", "message"), BAD)
def test_what_is_wrong_is_named(
    qwen: Path,
    tmp_path: Path,
    changes: dict[str, Any],
    tensors: dict[str, Tensor | None],
    error: type[MoeLocalError],
    message: str,
) -> None:
    writer = WRITERS["modelopt"]
    victim = "model.layers.1.mlp.experts.3.gate_proj."

    def replace(name: str, tensor: Tensor) -> Mapping[str, Tensor]:
        parts = dict(writer.quantise(name, tensor) or {name: tensor})
        if name == f"{victim}weight":
            for key, instead in tensors.items():
                parts.pop(victim + key, None)
                parts |= {} if instead is None else {victim + key: instead}
        return parts

    rewrite_checkpoint(qwen, tmp_path, replace, {**writer.config, **changes})
    with pytest.raises(error, match=message):
        understood(Checkpoint.open(tmp_path))
