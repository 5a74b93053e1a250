"""GGUF files of models some of whose layers attend to a window of the last tokens only."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from moe_local.checkpoint.gguf_architecture import (
    ATTENTION,
    BIAS,
    MLP,
    OUTSIDE,
    QK_NORMS,
    ROUTER,
    SHARED_EXPERTS,
    GgufArchitecture,
    stack,
)
from moe_local.checkpoint.gguf_metadata import ROPE_FREQS, Metadata, decoder_config, head_dim
from moe_local.checkpoint.gguf_shared import dense_then_sparse, routed

_SLIDING, _FULL = "sliding_attention", "full_attention"


def _layers(given: Metadata) -> dict[str, Any]:
    """What decoders have, and of which kind each layer is."""
    base = decoder_config(given)
    kinds = _kinds(given, base["num_hidden_layers"])
    return {**base, "layer_types": kinds, "sliding_window": given.integer("attention.sliding_window")}


def _kinds(given: Metadata, layers: int, every: int = 4) -> list[str]:
    """A list in the file says it, or a number of layers of which the last is not sliding."""
    listed = given.listed("attention.sliding_window_pattern")
    if listed is not None:
        return [_SLIDING if sliding else _FULL for sliding in listed[:layers]]
    every = given.integer("attention.sliding_window_pattern", every)
    return [_FULL if (number + 1) % every == 0 else _SLIDING for number in range(layers)]


def _two_rotations(given: Metadata, base: dict[str, Any]) -> dict[str, Any]:
    full = base["rope_parameters"]
    sliding = {"rope_type": "default", "rope_theta": given.number("rope.freq_base_swa", full["rope_theta"])}
    return {**base, "rope_parameters": {_FULL: full, _SLIDING: sliding}}


def _exaone(given: Metadata) -> dict[str, Any]:
    base, choice = _layers(given), routed(given)
    dense = given.integer("leading_dense_block_count", 0)
    return {
        **base,
        **choice,
        "num_experts": choice.pop("n_routed_experts"),
        "num_shared_experts": choice.pop("n_shared_experts"),
        "intermediate_size": given.integer("feed_forward_length"),
        "first_k_dense_replace": dense,
        "mlp_layer_types": dense_then_sparse(dense, base["num_hidden_layers"]),
    }


def _afmoe(given: Metadata) -> dict[str, Any]:
    return {
        **_layers(given),
        "head_dim": head_dim(given),
        "intermediate_size": given.integer("feed_forward_length"),
        "moe_intermediate_size": given.expert_width(),
        "num_dense_layers": given.integer("leading_dense_block_count", 0),
        "num_experts": given.expert_count(),
        "num_experts_per_tok": given.integer("expert_used_count"),
        "num_shared_experts": given.integer("expert_shared_count", 0),
        "route_scale": given.number("expert_weights_scale", 1.0),
        "mup_enabled": True,  # as llama.cpp has it
    }


def _mellum(given: Metadata) -> dict[str, Any]:
    return {
        **_two_rotations(given, _layers(given)),
        "head_dim": head_dim(given),
        "intermediate_size": given.integer("feed_forward_length"),
        "moe_intermediate_size": given.expert_width(),
        "num_local_experts": given.expert_count(),
        "num_experts_per_tok": given.integer("expert_used_count"),
        "norm_topk_prob": given.flag("expert_weights_norm", True),
    }


def _gemma(given: Metadata) -> dict[str, Any]:
    experts = given.expert_count()
    base = _layers(replace(given, rope_factors={}))
    heads = given.each("attention.head_count_kv", base["num_hidden_layers"])
    widths = given.each("feed_forward_length", base["num_hidden_layers"])
    full = next((n for n, kind in enumerate(base["layer_types"]) if kind == _FULL), 0)
    sliding = next((n for n, kind in enumerate(base["layer_types"]) if kind == _SLIDING), 0)
    rotated = given.rope_factors.get(ROPE_FREQS, (1.0,))
    return {
        **base,
        "num_key_value_heads": heads[sliding],
        "num_global_key_value_heads": heads[full],
        "attention_k_eq_v": f"blk.{full}.attn_v.weight" not in given.tensors,
        "head_dim": given.integer("attention.key_length_swa"),
        "global_head_dim": head_dim(given),
        "rope_parameters": {
            _SLIDING: {"rope_type": "default", "rope_theta": given.number("rope.freq_base_swa", 10_000.0)},
            _FULL: {
                "rope_type": "proportional",
                "partial_rotary_factor": rotated.count(1.0) / len(rotated),
                "rope_theta": base["rope_parameters"]["rope_theta"],
            },
        },
        "intermediate_size": min(widths),
        "use_double_wide_mlp": max(widths) > min(widths),
        "num_kv_shared_layers": given.integer("attention.shared_kv_layers", 0),
        "vocab_size_per_layer_input": given.tensors["token_embd.weight"].shape[0],
        "hidden_size_per_layer_input": given.integer("embedding_length_per_layer_input", 0),
        "final_logit_softcapping": given.number("final_logit_softcapping", 0.0) or None,
        "enable_moe_block": True,
        "num_experts": experts,
        "top_k_experts": given.integer("expert_used_count"),
        "moe_intermediate_size": given.expert_width(),
    }


def _gemma_experts() -> Any:
    return stack("experts")


_NAMES = {**ATTENTION, **QK_NORMS, **ROUTER, **MLP, **SHARED_EXPERTS}

SLIDING = {
    "exaone-moe": GgufArchitecture("exaone_moe", "ExaoneMoeForCausalLM", _exaone, names={**_NAMES, **BIAS}),
    "afmoe": GgufArchitecture(
        "afmoe",
        "AfmoeForCausalLM",
        _afmoe,
        names={
            **_NAMES,
            "attn_gate": "self_attn.gate_proj",
            "post_attention_norm": "post_attention_layernorm",
            "ffn_norm": "pre_mlp_layernorm",
            "post_ffw_norm": "post_mlp_layernorm",
            "ffn_gate_inp": "mlp.router.gate",
            "exp_probs_b.bias": "mlp.expert_bias",
        },
    ),
    "mellum": GgufArchitecture("mellum", "MellumForCausalLM", _mellum, names={**ATTENTION, **QK_NORMS, **ROUTER}),
    "gemma4": GgufArchitecture(
        "gemma4_text",
        "Gemma4ForCausalLM",
        _gemma,
        ("experts.{}.gate_proj", "experts.{}.up_proj", "experts.{}.down_proj"),
        {
            **ATTENTION,
            **QK_NORMS,
            **MLP,
            "post_attention_norm": "post_attention_layernorm",
            "ffn_norm": "pre_feedforward_layernorm",
            "post_ffw_norm": "post_feedforward_layernorm",
            "post_ffw_norm_1": "post_feedforward_layernorm_1",
            "post_ffw_norm_2": "post_feedforward_layernorm_2",
            "pre_ffw_norm_2": "pre_feedforward_layernorm_2",
            "ffn_gate_inp": "router.proj",
            "ffn_gate_inp.scale": "router.scale",
            "ffn_down_exps.scale": "router.per_expert_scale",
            "layer_output_scale.weight": "layer_scalar",
            "inp_gate": "per_layer_input_gate",
            "proj": "per_layer_projection",
            "post_norm": "post_per_layer_input_norm",
        },
        {
            **OUTSIDE,
            "per_layer_token_embd": "model.embed_tokens_per_layer",
            "per_layer_model_proj": "model.per_layer_model_projection",
            "per_layer_proj_norm": "model.per_layer_projection_norm",
        },
        rope_factors=True,
        conversions=_gemma_experts,
    ),
}
