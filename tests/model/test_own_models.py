"""Models that transformers does not have: as they are published, and what in them would not show in a small model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from moe_local import Sampling
from moe_local.checkpoint.architecture import build_skeleton, experts_modules, load_config, model_class
from moe_local.checkpoint.files import Checkpoint
from moe_local.checkpoint.models import MODELS
from moe_local.engine import load
from moe_local.errors import CheckpointError
from moe_local.planning.options import Options
from moe_local.store import first_use, pack, verify
from moe_local.testing import (
    Architecture,
    architecture,
    architectures,
    tiny_inputs,
    tiny_model,
    write_tiny_checkpoint,
)

OURS = [found for found in architectures() if found.model_class in MODELS.values()]
HALF = Options(device="cpu", context=64, experts=0.5)

# As published by deepseek-ai/deepseek-moe-16b-base and hpcai-tech/grok-1: of config.json what tells of the model.
PUBLISHED: dict[str, dict[str, Any]] = {
    "deepseek": {
        "architectures": ["DeepseekForCausalLM"],
        "auto_map": {"AutoModelForCausalLM": "modeling_deepseek.DeepseekForCausalLM"},
        "aux_loss_alpha": 0.001,
        "bos_token_id": 100000,
        "eos_token_id": 100001,
        "first_k_dense_replace": 1,
        "hidden_act": "silu",
        "hidden_size": 2048,
        "intermediate_size": 10944,
        "max_position_embeddings": 4096,
        "model_type": "deepseek",
        "moe_intermediate_size": 1408,
        "moe_layer_freq": 1,
        "n_routed_experts": 64,
        "n_shared_experts": 2,
        "norm_topk_prob": False,
        "num_attention_heads": 16,
        "num_experts_per_tok": 6,
        "num_hidden_layers": 28,
        "num_key_value_heads": 16,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 10000,
        "scoring_func": "softmax",
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vocab_size": 102400,
    },
    "grok-1": {
        "architectures": ["Grok1ModelForCausalLM"],
        "auto_map": {"AutoModelForCausalLM": "modeling_grok1.Grok1ModelForCausalLM"},
        "attn_output_multiplier": 0.08838834764831845,
        "embedding_multiplier_scale": 78.38367176906169,
        "hidden_size": 6144,
        "intermediate_size": 32768,
        "max_attn_value": 30.0,
        "max_position_embeddings": 8192,
        "model_type": "grok-1",
        "num_attention_heads": 48,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 64,
        "num_key_value_heads": 8,
        "output_multiplier_scale": 0.5773502691896257,
        "rms_norm_eps": 1e-05,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "vocab_size": 131072,
    },
}


def _skeleton(config: dict[str, Any]) -> Any:
    checkpoint = Checkpoint(Path("model"), config, {str(number): None for number in range(999)})  # type: ignore[misc]
    known = load_config(checkpoint)
    return build_skeleton(model_class(known), known, torch.bfloat16)


@pytest.mark.parametrize(("name", "weights", "layers"), [("deepseek", 16.4, 27), ("grok-1", 315.7, 64)])
def test_sizes_as_published(name: str, weights: float, layers: int) -> None:
    model = _skeleton(PUBLISHED[name])
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e9 == pytest.approx(weights, abs=0.1)
    assert len(experts_modules(model)) == layers


@pytest.mark.parametrize("found", OURS, ids=lambda found: found.id)
def test_the_checkpoint_s_own_code_is_not_run(found: Architecture, tmp_path: Path) -> None:
    write_tiny_checkpoint(found, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["auto_map"] = {name: f"own.{name}" for name in ("AutoConfig", "AutoModel", "AutoModelForCausalLM")}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text("raise SystemExit('it was run')")
    with load(tmp_path, HALF) as engine:
        assert engine.generate("hello", Sampling(max_new_tokens=4, temperature=0)).token_ids
        assert isinstance(engine.model, found.model_class)


@pytest.mark.parametrize("found", OURS, ids=lambda found: found.id)
def test_an_int4_store_runs(found: Architecture, tmp_path: Path) -> None:
    write_tiny_checkpoint(found, tmp_path / "source")
    store = pack(first_use.plan(tmp_path / "source", first_use.choose("int4", 32, "keep")), tmp_path / "store")
    assert verify(store) == []
    logits = []
    for directory in (tmp_path / "source", store):
        with load(directory, HALF) as engine, torch.no_grad():
            logits.append(engine.model(**tiny_inputs(found)).logits.flatten())
    assert torch.cosine_similarity(*logits, dim=0) > 0.95


def test_deepseek_with_other_scores_is_refused() -> None:
    with pytest.raises(CheckpointError, match="scored by 'sigmoid'"):
        _skeleton(PUBLISHED["deepseek"] | {"scoring_func": "sigmoid"})


def test_deepseek_weighs_experts_by_their_scores_among_all() -> None:
    """Of a softmax over all experts: what those that were chosen have of it is less than one."""
    gate: Any = tiny_model(architecture("deepseek")).model.layers[1].mlp.gate
    logits, weights, index = gate(torch.randn(5, gate.hidden_dim, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(weights, logits.softmax(dim=-1).gather(1, index))
    assert (weights.sum(dim=1) < 1).all()


def test_grok_caps_the_scores_of_attention() -> None:
    model: Any = tiny_model(architecture("grok"))
    attention, config = model.model.layers[0].self_attn, model.config
    x = torch.randn(1, 1, config.hidden_size, generator=torch.Generator().manual_seed(0)).repeat(1, 7, 1)
    x *= torch.linspace(-4, 4, 7)[:, None]
    unturned = torch.ones(1, 7, config.head_dim), torch.zeros(1, 7, config.head_dim)
    with torch.no_grad():
        got, _ = attention(x, position_embeddings=unturned, attention_mask=None)
        q, k, v = (getattr(attention, f"{kind}_proj")(x).view(7, -1, config.head_dim) for kind in "qkv")
        k, v = (
            each.repeat_interleave(config.num_attention_heads // config.num_key_value_heads, 1) for each in (k, v)
        )
        scores = torch.einsum("qhd,khd->hqk", q, k) * config.attn_output_multiplier
        capped = config.max_attn_value * torch.tanh(scores / config.max_attn_value)
        wanted = attention.o_proj(torch.einsum("hqk,khd->qhd", capped.softmax(dim=-1), v).flatten(1))
    assert (scores - capped).abs().max() > 0.1
    torch.testing.assert_close(got[0], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", ["embedding_multiplier_scale", "output_multiplier_scale"])
def test_grok_scales_at_both_ends(scale: str) -> None:
    found = architecture("grok")
    model: Any = tiny_model(found)
    inputs = tiny_inputs(found)
    with torch.no_grad():
        before = model(**inputs).logits
        setattr(model.config, scale, getattr(model.config, scale) / 2)
        if scale == "embedding_multiplier_scale":
            model.model.embed_tokens.weight *= 2
            model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight / 2)
        after = model(**inputs).logits
    torch.testing.assert_close(after, before / (2 if scale == "output_multiplier_scale" else 1), rtol=1e-5, atol=1e-5)
