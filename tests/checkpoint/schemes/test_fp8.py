"""fp8 checkpoints, written by transformers' own quantisation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import FineGrainedFP8Config
from transformers.integrations import finegrained_fp8
from transformers.integrations.finegrained_fp8 import Fp8Dequantize, Fp8Quantize

from moe_local.checkpoint.files import Checkpoint
from moe_local.checkpoint.schemes import understood
from moe_local.engine import load
from moe_local.errors import CheckpointError, UnsupportedError
from moe_local.formats.mxfp4 import Mxfp4
from moe_local.planning.options import Options
from moe_local.testing import architecture, write_tiny_checkpoint
from moe_local.testing.quantised import assert_quantised_runs, is_linear, rewrite_checkpoint


def _library(block: tuple[int, int] | None) -> tuple[Fp8Quantize, Fp8Dequantize]:
    config = FineGrainedFP8Config(weight_block_size=block or (128, 128))
    config.weight_block_size = block
    stub = SimpleNamespace(quantization_config=config)
    return Fp8Quantize(stub), Fp8Dequantize(stub)


# granitemoe: experts fused in a [experts, out, in] of the published name; the others: expert by expert.
@pytest.mark.parametrize("block", [(16, 16), (8, 32)], ids=str)
@pytest.mark.parametrize("model_type", ["qwen3_moe", "deepseek_v3", "granitemoe"])
def test_blocks_as_transformers_writes_them(model_type: str, block: tuple[int, int], tmp_path: Path) -> None:
    library, inverse = _library(block)

    def quantise(name: str, weight: Tensor) -> Mapping[str, Tensor] | None:
        if not is_linear(name, weight) and weight.ndim != 3:
            return None
        parts = library.convert({name: weight})
        return parts if len(parts) == 2 else None  # it leaves what does not divide into blocks

    def dequantise(name: str, parts: Mapping[str, Tensor]) -> Tensor:
        decoded: Tensor = inverse._dequantize_one(parts[name], parts[f"{name}_scale_inv"])
        return decoded

    config = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": list(block)}
    assert_quantised_runs(model_type, tmp_path, quantise, dequantise, config)


def _cast(name: str, weight: Tensor, scale: Tensor, block: tuple[int, int]) -> dict[str, Tensor]:
    spread = scale.float().repeat_interleave(block[0], 0)[: weight.shape[0]].repeat_interleave(block[1], 1)
    codes = (weight / spread[:, : weight.shape[1]]).to(torch.float8_e4m3fn)
    return {name: codes, f"{name}_scale_inv": scale}


@pytest.mark.skipif(
    not hasattr(finegrained_fp8, "_dequantize_fp8_weight"), reason="this transformers has no such dequantiser"
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e8m0fnu], ids=str)
def test_blocks_that_edges_cut_short(dtype: torch.dtype, tmp_path: Path) -> None:
    """DeepSeek-V3 has matrices of 576 rows in blocks of 128."""
    block = (20, 20)

    def quantise(name: str, weight: Tensor) -> Mapping[str, Tensor] | None:
        if not is_linear(name, weight):
            return None
        scale = torch.full([-(-size // 20) for size in weight.shape], 2.0**-6)
        scale[0] = 2.0**-7
        return _cast(name, weight, scale.to(dtype), block)

    def dequantise(name: str, parts: Mapping[str, Tensor]) -> Tensor:
        scale = parts[f"{name}_scale_inv"].float()
        decoded: Tensor = finegrained_fp8._dequantize_fp8_weight(parts[name], scale, list(block), torch.float32)
        return decoded

    config = {"quant_method": "fp8", "weight_block_size": list(block)}
    assert_quantised_runs("deepseek_v3", tmp_path, quantise, dequantise, config)


@pytest.mark.parametrize("per_row", [False, True])
def test_a_scale_a_matrix_or_a_row(per_row: bool, tmp_path: Path) -> None:
    def quantise(name: str, weight: Tensor) -> Mapping[str, Tensor] | None:
        if not is_linear(name, weight):
            return None
        scale = weight.abs().amax(dim=1, keepdim=True) / 448 if per_row else weight.abs().max() / 448
        codes = (weight / scale).to(torch.float8_e4m3fn)
        activation = name.removesuffix("weight") + "activation_scale"
        return {name: codes, f"{name}_scale_inv": scale, activation: torch.ones(())}

    def dequantise(name: str, parts: Mapping[str, Tensor]) -> Tensor:
        return parts[name].float() * parts[f"{name}_scale_inv"]

    config = {"quant_method": "fp8", "activation_scheme": "static"}
    assert_quantised_runs("mixtral", tmp_path, quantise, dequantise, config)


def test_deepseek_v4(tmp_path: Path) -> None:
    """Other names of scales, exponents in their own type, and experts of 4-bit floats."""
    block = (8, 8)
    library, inverse = _library(block)
    library.hf_quantizer.quantization_config.scale_fmt = "ue8m0"

    def quantise(name: str, weight: Tensor) -> Mapping[str, Tensor] | None:
        if not is_linear(name, weight):
            return None
        scale = f"{name.removesuffix('weight')}scale"
        if ".experts." in name:
            arrays = Mxfp4().encode(weight)
            codes = arrays["blocks"].flatten(1).view(torch.int8)
            return {name: codes, scale: arrays["scales"].view(torch.float8_e8m0fnu)}
        parts = library.convert({name: weight})
        return {name: parts[name], scale: parts[f"{name}_scale_inv"]} if len(parts) == 2 else None

    def dequantise(name: str, parts: Mapping[str, Tensor]) -> Tensor:
        codes, scales = parts.values()
        decoded: Tensor = inverse._dequantize_one(codes, scales, torch.float32)
        return decoded

    config = {"quant_method": "fp8", "scale_fmt": "ue8m0", "weight_block_size": list(block)}
    assert_quantised_runs("deepseek_v4", tmp_path, quantise, dequantise, config)


F8, I8 = torch.float8_e4m3fn, torch.int8
BAD: list[tuple[torch.dtype, Any, dict[str, Tensor], str]] = [
    (I8, [16, 16], {}, "weight_scale_inv' is missing"),
    (I8, [16, 16], {"scale": torch.ones(32, 4)}, "is of type float32"),
    (I8, [16, 16], {"scale": torch.ones(32, 2, dtype=torch.uint8)}, r"not \(32, 4\)"),
    (F8, [16, 16], {}, "weight_scale_inv' is missing"),
    (F8, [16, 16], {"weight_scale_inv": torch.ones(2, 2)}, r"has shape \(2, 2\), not \(2, 4\)"),
    (F8, [16, 16], {"weight_scale_inv": torch.ones(2, 4, dtype=torch.int32)}, "is of type int32"),
    (F8, None, {"weight_scale_inv": torch.ones(2, 4)}, r"has shape \(2, 4\)"),
    (F8, [16], {"weight_scale_inv": torch.ones(2, 4)}, "the block size is"),
    (F8, "128", {"weight_scale_inv": torch.ones(2, 4)}, "the block size is"),
    (F8, [0, 16], {"weight_scale_inv": torch.ones(2, 4)}, "the block size is"),
]


@pytest.mark.parametrize(("dtype", "block", "scale", "message"), BAD)
def test_bad_input_is_named(
    qwen: Path, tmp_path: Path, dtype: torch.dtype, block: Any, scale: dict[str, Tensor], message: str
) -> None:
    victim = "model.layers.1.mlp.experts.3.gate_proj."

    def replace(name: str, tensor: Tensor) -> Mapping[str, Tensor]:
        if name != f"{victim}weight":
            return {name: tensor}
        return {name: tensor.to(dtype), **{victim + n: s for n, s in scale.items()}}

    rewrite_checkpoint(qwen, tmp_path, replace, {"quant_method": "fp8", "weight_block_size": block})
    with pytest.raises(CheckpointError, match=message):
        understood(Checkpoint.open(tmp_path))


def test_a_scale_without_its_matrix_is_refused(qwen: Path, tmp_path: Path) -> None:
    def replace(name: str, tensor: Tensor) -> Mapping[str, Tensor]:
        return {name: tensor, "model.layers.0.self_attn.q_proj.weight_scale_inv": torch.ones(4, 4)}

    rewrite_checkpoint(qwen, tmp_path, replace, {"quant_method": "fp8", "weight_block_size": [16, 16]})
    with pytest.raises(CheckpointError, match="belongs to no quantised matrix"):
        understood(Checkpoint.open(tmp_path))


@pytest.mark.parametrize("victim", ["self_attn.o_proj", "mlp.experts.3.down_proj"])
def test_a_matrix_of_another_shape_than_the_model_s_is_refused(qwen: Path, tmp_path: Path, victim: str) -> None:
    """Its parts agree with each other: only the model knows better."""

    def replace(name: str, tensor: Tensor) -> Mapping[str, Tensor]:
        if name != f"model.layers.1.{victim}.weight":
            return {name: tensor}
        return _cast(name, torch.cat([tensor, tensor]), torch.ones(8, tensor.shape[1] // 16), (16, 16))

    rewrite_checkpoint(qwen, tmp_path, replace, {"quant_method": "fp8", "weight_block_size": [16, 16]})
    with pytest.raises((CheckpointError, UnsupportedError)) as caught, load(tmp_path, Options(context=64)):
        pass
    assert "layers.1" in str(caught.value)


def test_experts_the_other_way_round_are_refused(tmp_path: Path) -> None:
    """A checkpoint whose fused matrices are [in, out] does not say so; no published one is."""
    original = write_tiny_checkpoint(architecture("gpt_oss"), tmp_path / "original")

    def replace(name: str, tensor: Tensor) -> Mapping[str, Tensor]:
        if tensor.ndim != 3:
            return {name: tensor}
        return {name: tensor.to(torch.float8_e4m3fn), f"{name}_scale_inv": torch.ones(len(tensor))}

    rewrite_checkpoint(original, tmp_path / "fp8", replace, {"quant_method": "fp8"})
    with (
        pytest.raises(UnsupportedError, match="cannot be read in place"),
        load(tmp_path / "fp8", Options(context=64)),
    ):
        pass
