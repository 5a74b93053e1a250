"""awq checkpoints, packed as AutoAWQ's `WQLinear_GEMM.from_linear` does: its library needs a GPU to install.

They hold experts one by one; AutoAWQ knows no fused ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from moe_local.checkpoint.files import Checkpoint
from moe_local.checkpoint.schemes import understood
from moe_local.errors import CheckpointError, MoeLocalError, UnsupportedError
from moe_local.testing.quantised import assert_quantised_runs, is_linear, rewrite_checkpoint

from .integers import in_order, pack, quantise

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
CONFIG = {"quant_method": "awq", "bits": 4, "group_size": 16, "version": "gemm", "zero_point": True}


class _Writer:
    """Quantises linear layers, and remembers what they mean."""

    def __init__(self, **config: Any) -> None:
        self.config = {**CONFIG, **config}
        self._wanted: dict[str, Tensor] = {}

    def quantise(self, name: str, weight: Tensor) -> Mapping[str, Tensor] | None:
        if not is_linear(name, weight):
            return None
        integers = quantise(weight, 4, in_order(weight.shape[1], self.config["group_size"]))
        self._wanted[name] = integers.weight
        prefix = name.removesuffix("weight")
        return {
            f"{prefix}qweight": pack(integers.codes.T.contiguous(), 4, ORDER),
            f"{prefix}qzeros": pack(integers.zeros.T.contiguous(), 4, ORDER),
            f"{prefix}scales": integers.scales.T,
        }

    def dequantise(self, name: str, parts: Mapping[str, Tensor]) -> Tensor:
        return self._wanted[name]


@pytest.mark.parametrize("writer", [_Writer(), _Writer(group_size=-1, version="GEMM")], ids=["groups", "whole-rows"])
@pytest.mark.parametrize("model_type", ["qwen3_moe", "mixtral"])
def test_every_variant(model_type: str, writer: _Writer, tmp_path: Path) -> None:
    assert_quantised_runs(model_type, tmp_path, writer.quantise, writer.dequantise, writer.config)


CONFIGS: list[tuple[dict[str, Any], type[MoeLocalError], str]] = [
    ({"bits": 8}, UnsupportedError, "8 bits"),
    ({"bits": 4.0}, CheckpointError, "bits is 4.0"),
    ({"group_size": -2}, CheckpointError, "group_size is -2"),
    ({"group_size": 24}, CheckpointError, "in groups of 24"),
    ({"version": "gemv_fast"}, UnsupportedError, "gemv_fast"),
]


@pytest.mark.parametrize(("changes", "error", "message"), CONFIGS)
def test_bad_configurations_are_named(
    qwen: Path, tmp_path: Path, changes: dict[str, Any], error: type[MoeLocalError], message: str
) -> None:
    writer = _Writer()
    config = {**writer.config, **changes}
    rewrite_checkpoint(qwen, tmp_path, lambda n, t: writer.quantise(n, t) or {n: t}, config)
    with pytest.raises(error, match=message):
        understood(Checkpoint.open(tmp_path))


VICTIM = "model.layers.1.mlp.experts.3.gate_proj."
BAD: list[tuple[str, Tensor | None, str]] = [
    ("scales", None, "scales' is missing"),
    ("qzeros", None, "qzeros' is missing"),
    ("qweight", None, "belongs to no quantised matrix"),
    ("scales", torch.ones(4, 16), r"has shape \(4, 16\), not \(4, 32\)"),
    ("qzeros", torch.ones(2, 4).int(), r"not \(4, 4\)"),
    ("qweight", torch.ones(0, 4).int(), "is no matrix"),
]


@pytest.mark.parametrize(("part", "instead", "message"), BAD)
def test_bad_tensors_are_named(qwen: Path, tmp_path: Path, part: str, instead: Tensor | None, message: str) -> None:
    writer = _Writer()

    def replace(name: str, tensor: Tensor) -> Mapping[str, Tensor]:
        parts = dict(writer.quantise(name, tensor) or {name: tensor})
        if name == f"{VICTIM}weight":
            del parts[VICTIM + part]
            parts |= {} if instead is None else {VICTIM + part: instead}
        return parts

    rewrite_checkpoint(qwen, tmp_path, replace, writer.config)
    with pytest.raises(CheckpointError, match=message):
        understood(Checkpoint.open(tmp_path))
