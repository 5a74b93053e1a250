"""gptq checkpoints, packed as AutoGPTQ's `QuantLinear.pack` does: its library and GPTQModel need a GPU to build.

They hold experts one by one; GPTQModel takes fused ones apart, into modules that transformers does not have.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
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


class Writer:
    """Quantises linear layers as `config` says, and remembers what they mean."""

    def __init__(
        self,
        *,
        g_idx: bool = True,
        bias: bool = False,
        changes: Callable[[str], dict[str, Any] | None] = lambda name: {},
        **config: Any,
    ) -> None:
        """`changes` gives what is different for a tensor, None for one that is left alone: what `dynamic` says."""
        self._changes = changes
        self.config = {"quant_method": "gptq", "bits": 4, "group_size": 16, "desc_act": False, "sym": False, **config}
        self._g_idx = g_idx
        self._bias = bias
        self._wanted: dict[str, Tensor] = {}

    def quantise(self, name: str, weight: Tensor) -> Mapping[str, Tensor] | None:
        if not is_linear(name, weight):
            return None
        change = self._changes(name)
        if change is None:
            return None
        its = {**self.config, **change}
        bits, group = its["bits"], its["group_size"]
        columns = in_order(weight.shape[1], group)
        if its["desc_act"]:
            columns = columns[torch.randperm(len(columns), generator=torch.Generator().manual_seed(0))]
        integers = quantise(weight, bits, columns)
        self._wanted[name] = integers.weight
        less = 0 if self.config.get("checkpoint_format") == "gptq_v2" else 1
        prefix = name.removesuffix("weight")
        parts = {
            f"{prefix}qweight": pack(integers.codes, bits).T,
            f"{prefix}qzeros": pack((integers.zeros.T.contiguous() - less) % 2**bits, bits),
            f"{prefix}scales": integers.scales.T,
        }
        if self._g_idx:
            parts[f"{prefix}g_idx"] = columns.int()
        if self._bias:
            parts[f"{prefix}bias"] = torch.zeros(len(weight))
        return parts

    def meant(self, name: str, weight: Tensor) -> Tensor:
        """What a tensor of the original became."""
        return self._wanted.get(name, weight)

    def dequantise(self, name: str, parts: Mapping[str, Tensor]) -> Tensor:
        return self._wanted[name]


def _by_the_first(name: str) -> dict[str, Any] | None:
    if ".experts.2." not in name:
        return {"group_size": 8}
    return None if "up_proj" in name or "w3" in name else {"bits": 8}


WRITERS = {
    "4-bits": Writer(),
    "8-bits": Writer(bits=8),
    "whole-rows": Writer(group_size=-1),
    "by-activation": Writer(desc_act=True),
    "version-2": Writer(checkpoint_format="gptq_v2"),
    "without-g_idx": Writer(g_idx=False),
    "biases-of-zeros": Writer(bias=True),
    "cut-short": Writer(group_size=24),
    "cut-short-without-g_idx": Writer(group_size=24, g_idx=False),
    "some-left-alone": Writer(dynamic={"-:.*gate.*": {}}),
    "some-experts-in-8-bits": Writer(
        dynamic={r"+:.*\.experts\.[0-3]\.": {"bits": 8, "group_size": 32}, "": {}},
        changes=lambda name: {"bits": 8, "group_size": 32} if re.search(r"\.experts\.[0-3]\.", name) else {},
    ),
    "one-projection-by-activation": Writer(
        dynamic={r".*\.(up_proj|w3)": {"desc_act": True}},
        changes=lambda name: {"desc_act": True} if "up_proj" in name or "w3" in name else {},
    ),
    "the-first-pattern-counts": Writer(
        dynamic={r"-:.*experts\.2\.(up_proj|w3)": {}, r"+:.*experts\.2\.": {"bits": 8}, r"+:.*": {"group_size": 8}},
        changes=lambda name: _by_the_first(name),
    ),
    "a-pattern-matches-from-the-start": Writer(dynamic={r"+:layers": {"bits": 8}}),
}


@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS.keys())
@pytest.mark.parametrize("model_type", ["qwen3_moe", "mixtral"])
def test_every_variant(model_type: str, writer: Writer, tmp_path: Path) -> None:
    assert_quantised_runs(model_type, tmp_path, writer.quantise, writer.dequantise, writer.config)


CONFIGS: list[tuple[dict[str, Any], type[MoeLocalError], str]] = [
    ({"bits": 3}, UnsupportedError, "3 bits"),
    ({"bits": None}, CheckpointError, "bits is None"),
    ({"group_size": 0}, CheckpointError, "group_size is 0"),
    ({"group_size": 10**30}, CheckpointError, "qzeros' has shape"),
    ({"checkpoint_format": "bitblas"}, UnsupportedError, "bitblas"),
    ({"is_marlin_format": True}, UnsupportedError, "marlin"),
    ({"dynamic": {"+:.*": {"bits": 3}}}, UnsupportedError, "3 bits"),
    ({"dynamic": {"+:.*": {"bits": "4"}}}, CheckpointError, "bits is '4'"),
    ({"dynamic": {"+:.*": 8}}, CheckpointError, "are 8"),
    ({"dynamic": {"+:*": {"bits": 8}}}, CheckpointError, "is not a pattern"),
    ({"dynamic": 1}, CheckpointError, "dynamic is 1"),
]


@pytest.mark.parametrize(("changes", "error", "message"), CONFIGS)
def test_bad_configurations_are_named(
    qwen: Path, tmp_path: Path, changes: dict[str, Any], error: type[MoeLocalError], message: str
) -> None:
    writer = WRITERS["4-bits"]
    config = {**writer.config, **changes}
    rewrite_checkpoint(qwen, tmp_path, lambda n, t: writer.quantise(n, t) or {n: t}, config)
    with pytest.raises(error, match=message):
        understood(Checkpoint.open(tmp_path))


VICTIM = "model.layers.1.mlp.experts.3.gate_proj."
BAD: list[tuple[dict[str, Tensor | None], str]] = [
    ({"scales": None}, "scales' is missing"),
    ({"qzeros": None}, "qzeros' is missing"),
    ({"qweight": None}, "belongs to no quantised matrix"),
    ({"scales": torch.ones(3, 32)}, r"has shape \(3, 32\), not \(4, 32\)"),
    ({"qzeros": torch.ones(4, 4)}, "is of type float32, not int32"),
    ({"g_idx": torch.ones(63).int()}, r"not \(64,\)"),
    ({"qweight": torch.ones(8).int()}, "is no matrix"),
    ({"qweight": torch.ones(8, 33).int()}, "fill no whole words"),
    ({"qweight": torch.ones(16, 32).int()}, r"not \(8, 4\)"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_bad_tensors_are_named(qwen: Path, tmp_path: Path, changes: dict[str, Tensor | None], message: str) -> None:
    writer = WRITERS["4-bits"]

    def replace(name: str, tensor: Tensor) -> Mapping[str, Tensor]:
        parts = dict(writer.quantise(name, tensor) or {name: tensor})
        if name == f"{VICTIM}weight":
            for key, instead in changes.items():
                del parts[VICTIM + key]
                parts |= {} if instead is None else {VICTIM + key: instead}
        return parts

    rewrite_checkpoint(qwen, tmp_path, replace, writer.config)
    with pytest.raises(CheckpointError, match=message):
        understood(Checkpoint.open(tmp_path))


def test_a_pattern_that_never_ends_is_given_up(qwen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from moe_local.checkpoint.schemes import checks

    monkeypatch.setattr(checks, "_PATIENCE", 0.2)
    writer = WRITERS["4-bits"]
    config = {**writer.config, "dynamic": {r"+:(\w|\w\w|.)+\s": {"bits": 8}}}
    rewrite_checkpoint(qwen, tmp_path, lambda n, t: writer.quantise(n, t) or {n: t}, config)
    with pytest.raises(CheckpointError, match="takes too long"):
        understood(Checkpoint.open(tmp_path))
