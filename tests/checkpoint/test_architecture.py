"""What is refused before any weight is read, and why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM, Qwen3MoeConfig

from moe_local.checkpoint import architecture
from moe_local.checkpoint.architecture import (
    _assert_rotary,
    assert_all_captured,
    build_skeleton,
    compute_dtype,
    load_config,
    model_class,
)
from moe_local.checkpoint.files import Checkpoint
from moe_local.errors import CheckpointError, UnsupportedError


def _checkpoint(config: dict[str, Any], directory: Path = Path("model")) -> Checkpoint:
    return Checkpoint(directory, config, {})


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "moe_of_tomorrow"}, "unknown to transformers"),
        ({}, "unknown to transformers"),
        ({"model_type": "mine", "auto_map": {"AutoModel": "modeling.Mine"}}, "never runs"),
    ],
)
def test_kinds_that_are_refused(config: dict[str, Any], said: str) -> None:
    with pytest.raises(UnsupportedError, match=said) as caught:
        load_config(_checkpoint(config))
    assert caught.value.remedy


def test_nonsense_in_a_known_config(tmp_path: Path) -> None:
    config = {"model_type": "mixtral", "num_local_experts": "many", "hidden_size": -3}
    (tmp_path / "config.json").write_text(json.dumps(config))
    checkpoint = _checkpoint(config, tmp_path)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        known = load_config(checkpoint)
        build_skeleton(model_class(known), known, torch.float32)


def test_more_layers_than_tensors() -> None:
    with pytest.raises(CheckpointError, match="num_hidden_layers 1000000000"):
        load_config(_checkpoint({"model_type": "mixtral", "num_hidden_layers": 10**9}))
    with pytest.raises(CheckpointError, match="num_hidden_layers 1000000000"):
        load_config(_checkpoint({"model_type": "gemma4", "text_config": {"num_hidden_layers": 10**9}}))
    with pytest.raises(CheckpointError, match="decoder_layers -1"):
        load_config(_checkpoint({"model_type": "nllb-moe", "decoder_layers": -1}))


def test_a_dense_model_is_refused() -> None:
    config = LlamaConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    with pytest.raises(UnsupportedError, match="dense model"):
        assert_all_captured(build_skeleton(LlamaForCausalLM, config, torch.float32))


@pytest.mark.parametrize("model_type", ["llama4_text", "jetmoe", "longcat_flash", "switch_transformers"])
def test_blocks_without_a_binding_are_named(model_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(architecture, "binding_of", lambda cls: None)
    config = AutoConfig.for_model(model_type)
    config.num_hidden_layers = 2
    with pytest.raises(UnsupportedError, match=r"cannot page: \w+"):
        assert_all_captured(build_skeleton(model_class(config), config, torch.bfloat16))


def test_why_an_architecture_is_not_run() -> None:
    config = AutoConfig.for_model("doge", num_hidden_layers=1, hidden_size=32, num_attention_heads=2, is_moe=True)
    with pytest.raises(UnsupportedError, match="rows of two tables"):
        assert_all_captured(build_skeleton(model_class(config), config, torch.float32))


def test_a_model_that_makes_no_text_is_refused() -> None:
    config = AutoConfig.for_model("vit")
    with pytest.raises(UnsupportedError, match="no text-generating class"):
        model_class(config)


def test_dtype_of_the_configuration_wins(qwen: Path) -> None:
    checkpoint = Checkpoint.open(qwen)
    config = load_config(checkpoint)
    assert compute_dtype(config, checkpoint) == torch.float32
    config.dtype = torch.bfloat16
    assert compute_dtype(config, checkpoint) == torch.bfloat16


@pytest.mark.parametrize("factor", [0, -1, 2, 4096, "half"])
@pytest.mark.parametrize("nested", [False, True])
def test_rotary_embeddings_of_more_than_a_head_are_refused(factor: object, nested: bool, tmp_path: Path) -> None:
    rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": factor}
    known = Qwen3MoeConfig()
    known.rope_parameters = {"full_attention": rope} if nested else rope
    with pytest.raises(CheckpointError, match="partial_rotary_factor"):
        _assert_rotary(known, tmp_path / "config.json")
