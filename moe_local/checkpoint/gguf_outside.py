"""GGUF files of models that transformers keeps outside its experts interface, or does not have at all."""

from __future__ import annotations

from typing import Any

from transformers.core_model_loading import WeightTransform

from moe_local.checkpoint.gguf_architecture import (
    ATTENTION,
    MLP,
    ROUTER,
    SHARED_EXPERTS,
    GgufArchitecture,
    stack,
)
from moe_local.checkpoint.gguf_metadata import Metadata, decoder_config, head_dim

_WITHOUT_QK_NORM = 128  # experts: those of Llama 4 Maverick, which alone has no norms; no field of a file says so


def _deepseek(given: Metadata) -> dict[str, Any]:
    return {
        **decoder_config(given),
        "head_dim": head_dim(given),
        "intermediate_size": given.integer("feed_forward_length"),
        "moe_intermediate_size": given.expert_width(),
        "n_routed_experts": given.expert_count(),
        "n_shared_experts": given.integer("expert_shared_count"),
        "num_experts_per_tok": given.integer("expert_used_count"),
        "first_k_dense_replace": given.integer("leading_dense_block_count", 0),
        "norm_topk_prob": False,  # as llama.cpp has it
    }


def _grok(given: Metadata) -> dict[str, Any]:
    """Files of before September 2025 leave the scales out."""
    return {
        **decoder_config(given),
        "head_dim": head_dim(given),
        "intermediate_size": given.expert_width("feed_forward_length"),
        "num_experts": given.expert_count(),
        "num_experts_per_tok": given.integer("expert_used_count"),
        "attn_output_multiplier": given.number("attention.output_scale", 128**-0.5),
        "max_attn_value": given.number("attn_logit_softcapping", 30.0),
        "embedding_multiplier_scale": given.number("embedding_scale", 6144**0.5),
        "output_multiplier_scale": given.number("logit_scale", 3**-0.5),
    }


def _dbrx(given: Metadata) -> dict[str, Any]:
    layers = given.layers()
    return {
        "d_model": given.integer("embedding_length"),
        "n_heads": given.integer("attention.head_count"),
        "n_layers": layers,
        "num_hidden_layers": layers,
        "max_seq_len": given.integer("context_length"),
        "attn_config": {
            "kv_n_heads": given.integer("attention.head_count_kv"),
            "clip_qkv": given.number("attention.clamp_kqv"),
            "rope_theta": given.number("rope.freq_base"),
        },
        "ffn_config": {
            "ffn_hidden_size": given.expert_width("feed_forward_length"),
            "moe_num_experts": given.expert_count(),
            "moe_top_k": given.integer("expert_used_count"),
        },
        **{f"{name}_token_id": given.token(name) for name in ("bos", "eos")},
        "pad_token_id": given.token("padding"),
    }


def _dbrx_experts() -> tuple[WeightTransform, ...]:
    return stack("ffn.experts")


def _llama4(given: Metadata) -> dict[str, Any]:
    experts = given.expert_count()
    return {
        **decoder_config(given),
        "head_dim": head_dim(given),
        "intermediate_size": given.expert_width(),
        "intermediate_size_mlp": given.integer("feed_forward_length"),
        "num_local_experts": experts,
        "num_experts_per_tok": given.integer("expert_used_count"),
        "interleave_moe_layer_step": given.integer("interleave_moe_layer_step"),
        "use_qk_norm": experts != _WITHOUT_QK_NORM,
    }


OUTSIDE_INTERFACE = {
    "deepseek": GgufArchitecture(
        "deepseek",
        "DeepseekForCausalLM",
        _deepseek,
        names={**ATTENTION, **ROUTER, **MLP, **SHARED_EXPERTS},
        rotary_permuted=True,
    ),
    "grok": GgufArchitecture(
        "grok-1",
        "Grok1ForCausalLM",
        _grok,
        ("moe_block.experts.{}.linear", "moe_block.experts.{}.linear_v", "moe_block.experts.{}.linear_1"),
        {
            **ATTENTION,
            **ROUTER,
            "attn_output_norm": "post_attention_layernorm",
            "ffn_norm": "pre_feedforward_layernorm",
            "layer_output_norm": "post_feedforward_layernorm",
            "post_ffw_norm": "post_feedforward_layernorm",
        },
    ),
    "dbrx": GgufArchitecture(
        "dbrx",
        "DbrxForCausalLM",
        _dbrx,
        ("ffn.experts.{}.gate_proj", "ffn.experts.{}.up_proj", "ffn.experts.{}.down_proj"),
        {
            "attn_norm": "norm_attn_norm.norm_1",
            "attn_qkv": "norm_attn_norm.attn.Wqkv",
            "attn_output": "norm_attn_norm.attn.out_proj",
            "attn_output_norm": "norm_attn_norm.norm_2",
            "ffn_gate_inp": "ffn.router.layer",
        },
        {"token_embd": "transformer.wte", "output_norm": "transformer.norm_f", "output": "lm_head"},
        layers="transformer.blocks",
        conversions=_dbrx_experts,
    ),
    "llama4": GgufArchitecture(
        "llama4_text",
        "Llama4ForCausalLM",
        _llama4,
        (
            "feed_forward.experts.{}.gate_proj",
            "feed_forward.experts.{}.up_proj",
            "feed_forward.experts.{}.down_proj",
        ),
        {
            **ATTENTION,
            "ffn_gate_inp": "feed_forward.router",
            "ffn_gate": "feed_forward.gate_proj",
            "ffn_up": "feed_forward.up_proj",
            "ffn_down": "feed_forward.down_proj",
            "ffn_gate_shexp": "feed_forward.shared_expert.gate_proj",
            "ffn_up_shexp": "feed_forward.shared_expert.up_proj",
            "ffn_down_shexp": "feed_forward.shared_expert.down_proj",
        },
        rope_factors=True,
    ),
}
