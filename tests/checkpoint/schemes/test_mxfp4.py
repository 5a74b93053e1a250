"""mxfp4 checkpoints: gpt-oss is the one architecture that is published so, its experts fused in one tensor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from moe_local.checkpoint.files import Checkpoint
from moe_local.checkpoint.schemes import understood
from moe_local.errors import CheckpointError
from moe_local.formats.mxfp4 import Mxfp4
from moe_local.testing import architecture, write_tiny_checkpoint
from moe_local.testing.quantised import assert_quantised_runs, assert_runs_as, rewrite_checkpoint

CONFIG = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}


def _quantise(name: str, weight: Tensor) -> Mapping[str, Tensor] | None:
    if weight.ndim != 3:
        return None
    each = [Mxfp4().encode(expert.T) for expert in weight]
    return {f"{name}_{part}": torch.stack([arrays[part] for arrays in each]) for part in ("blocks", "scales")}


def _dequantise(name: str, parts: Mapping[str, Tensor]) -> Tensor:
    decoded: Tensor = convert_moe_packed_tensors(
        parts[f"{name}_blocks"], parts[f"{name}_scales"], dtype=torch.float32
    )
    return decoded


def test_gpt_oss(tmp_path: Path) -> None:
    quantised = assert_quantised_runs("gpt_oss", tmp_path, _quantise, _dequantise, CONFIG)
    # On a CPU transformers dequantises such a checkpoint while loading it.
    assert_runs_as("gpt_oss", quantised, quantised)


BAD: list[tuple[str, Tensor | None, str]] = [
    ("scales", None, "gate_up_proj_scales' is missing"),
    ("blocks", None, "gate_up_proj_scales' belongs to no quantised matrix"),
    ("scales", torch.ones(8, 192, 3, dtype=torch.uint8), r"has shape \(8, 192, 3\), not \(8, 192, 2\)"),
    ("scales", torch.ones(8, 192, 2), "is of type float32"),
    ("blocks", torch.ones(8, 192, 32, dtype=torch.uint8), r"not \[experts, out, in / 32, 16\]"),
]


@pytest.mark.parametrize(("part", "instead", "message"), BAD)
def test_bad_input_is_named(tmp_path: Path, part: str, instead: Tensor | None, message: str) -> None:
    def replace(name: str, tensor: Tensor) -> Mapping[str, Tensor]:
        parts = dict(_quantise(name, tensor) or {name: tensor})
        if name == "model.layers.1.mlp.experts.gate_up_proj":
            del parts[f"{name}_{part}"]
            parts |= {} if instead is None else {f"{name}_{part}": instead}
        return parts

    original = write_tiny_checkpoint(architecture("gpt_oss"), tmp_path / "original")
    checkpoint = Checkpoint.open(rewrite_checkpoint(original, tmp_path / "bad", replace, CONFIG))
    with pytest.raises(CheckpointError, match=message):
        understood(checkpoint)
