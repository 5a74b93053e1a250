"""The metadata of a GGUF file, as llama.cpp's conversion makes it of a model's configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from moe_local.testing.gguf_common import (
    SIGMOID,
    Values,
    common,
    experts,
    first,
    head_width,
    partial_rotary,
    scaling_of,
    wide_experts,
    with_shared_expert,
)
from moe_local.testing.gguf_hybrid_metadata import granite, granite_hybrid, jamba, lfm2, linear, nemotron

GEMMA_HEAD = 32  # width of its heads in layers of full attention


def metadata(config: Any, name: str, extra: int) -> Values:
    """By key, without the architecture's `name` before it. `extra` layers predict several tokens at once."""
    own = OWN[name](config) if name in OWN else {}
    rope = getattr(config, "rope_parameters", None) or {}
    scaling = scaling_of(rope)
    values = {**common(config), **scaling, **experts(config), **own}
    if extra:
        values |= {"block_count": config.num_hidden_layers + extra, "nextn_predict_layers": extra}
    return {key: value for key, value in values.items() if value is not None}


def _gpt_oss(config: Any) -> Values:
    return {
        "attention.sliding_window": config.sliding_window,
        "expert_feed_forward_length": config.intermediate_size,
    }


def _routed(config: Any) -> Values:
    """DeepSeek-V3's router, and its kin's."""
    return {
        **wide_experts(config),
        "expert_shared_count": first(config, "n_shared_experts", "num_shared_experts"),
        "expert_weights_scale": config.routed_scaling_factor,
        "expert_weights_norm": first(config, "norm_topk_prob", "moe_renormalize"),
        "leading_dense_block_count": _dense(config),
        "expert_gating_func": SIGMOID,
    }


def _dense(config: Any) -> int:
    kinds = getattr(config, "mlp_layer_types", None)
    return int(getattr(config, "first_k_dense_replace", 0) if kinds is None else kinds.count("dense"))


def _latent(config: Any) -> Values:
    """Of which the file says what a cache of the latent vectors is told."""
    rank, rotated, rope = config.kv_lora_rank, config.qk_rope_head_dim, getattr(config, "rope_parameters", None) or {}
    v3 = config.model_type != "deepseek_v2" and config.model_type != "mistral4"
    return {
        **_routed(config),
        "attention.head_count_kv": 1,
        "attention.q_lora_rank": config.q_lora_rank,
        "attention.kv_lora_rank": rank,
        "attention.key_length": rank + rotated,
        "attention.value_length": rank,
        "attention.key_length_mla": config.qk_nope_head_dim + rotated,
        "attention.value_length_mla": config.v_head_dim,
        "rope.dimension_count": rotated,
        "expert_gating_func": SIGMOID if v3 else 1,
        "attention.temperature_length": rope.get("original_max_position_embeddings"),
        "attention.temperature_scale": rope.get("llama_4_scaling_beta"),
    }


def _indexed(config: Any) -> Values:
    kinds = getattr(config, "indexer_types", None)
    return {
        **_latent(config),
        "attention.layer_norm_epsilon": 1e-6,
        "attention.indexer.head_count": config.index_n_heads,
        "attention.indexer.key_length": config.index_head_dim,
        "attention.indexer.top_k": config.index_topk,
        "attention.indexer.types": None if kinds is None else [kind == "full" for kind in kinds],
    }


def _kimi(config: Any) -> Values:
    return {
        **_latent(config),
        "attention.head_count_kv": [int(kind == "full_attention") for kind in config.layer_types],
        "ssm.conv_kernel": config.linear_conv_kernel_dim,
        "kda.head_dim": config.linear_head_dim,
    }


def _ernie(config: Any) -> Values:
    return {
        **wide_experts(config),
        "interleave_moe_layer_step": config.moe_layer_interval,
        "leading_dense_block_count": config.moe_layer_start_index,
        "expert_shared_count": config.moe_num_shared_experts,
        "expert_shared_feed_forward_length": config.moe_intermediate_size * config.moe_num_shared_experts,
    }


def _hy(config: Any) -> Values:
    return {
        **wide_experts(config),
        "expert_shared_count": config.num_shared_experts,
        "expert_shared_feed_forward_length": config.num_shared_experts * config.moe_intermediate_size,
        "expert_weights_scale": config.router_scaling_factor,
        "expert_weights_norm": True,
        "leading_dense_block_count": config.mlp_layer_types.count("dense"),
        "expert_gating_func": SIGMOID,
    }


def _sliding(config: Any) -> Values:
    return {
        **wide_experts(config),
        "attention.sliding_window": config.sliding_window,
        "attention.sliding_window_pattern": [kind == "sliding_attention" for kind in config.layer_types],
    }


def _exaone(config: Any) -> Values:
    return {
        **_sliding(config),
        "expert_shared_count": config.num_shared_experts,
        "expert_shared_feed_forward_length": config.num_shared_experts * config.moe_intermediate_size,
        "expert_weights_scale": config.routed_scaling_factor,
        "expert_weights_norm": config.norm_topk_prob,
        "leading_dense_block_count": config.mlp_layer_types.count("dense"),
        "expert_gating_func": SIGMOID,
        "rope.scaling.type": "none",
    }


def _afmoe(config: Any) -> Values:
    return {
        **wide_experts(config),
        "attention.sliding_window": config.sliding_window,
        "expert_shared_count": config.num_shared_experts,
        "expert_weights_scale": config.route_scale,
        "expert_weights_norm": True,
        "leading_dense_block_count": config.num_dense_layers,
        "expert_gating_func": SIGMOID,
    }


def _gemma(config: Any) -> Values:
    return {
        **_sliding(config),
        "attention.key_length": GEMMA_HEAD,
        "attention.value_length": GEMMA_HEAD,
        "attention.key_length_swa": head_width(config),
        "attention.value_length_swa": head_width(config),
        "attention.shared_kv_layers": config.num_kv_shared_layers,
        "embedding_length_per_layer_input": config.hidden_size_per_layer_input,
        "final_logit_softcapping": config.final_logit_softcapping,
        "rope.dimension_count": GEMMA_HEAD,
        "rope.dimension_count_swa": head_width(config),
    }


def _deepseek(config: Any) -> Values:
    return {
        **wide_experts(config),
        "expert_shared_count": config.n_shared_experts,
        "expert_weights_scale": 1.0,
        "leading_dense_block_count": config.first_k_dense_replace,
        "rope.dimension_count": head_width(config),
        "rope.scaling.type": "none",
    }


def _grok(config: Any) -> Values:
    return {
        "attention.output_scale": config.attn_output_multiplier,
        "attn_logit_softcapping": config.max_attn_value,
        "router_logit_softcapping": 30.0,  # which nobody applies
        "embedding_scale": config.embedding_multiplier_scale,
        "logit_scale": config.output_multiplier_scale,
    }


def _dbrx(config: Any) -> Values:
    return {
        "feed_forward_length": config.ffn_config.ffn_hidden_size,
        "expert_count": config.ffn_config.moe_num_experts,
        "expert_used_count": config.ffn_config.moe_top_k,
        "attention.clamp_kqv": float(config.attn_config.clip_qkv),
        "attention.layer_norm_epsilon": 1e-5,
    }


def _llama4(config: Any) -> Values:
    return {
        "feed_forward_length": config.intermediate_size_mlp,
        "expert_feed_forward_length": config.intermediate_size,
        "interleave_moe_layer_step": config.interleave_moe_layer_step,
        "rope.dimension_count": head_width(config),
    }


OWN: dict[str, Callable[[Any], Values]] = {
    "qwen3moe": wide_experts,
    "qwen2moe": with_shared_expert,
    "qwen3next": linear,
    "qwen35moe": linear,
    "gpt-oss": _gpt_oss,
    "granitemoe": granite,
    "lfm2moe": lfm2,
    "glm4moe": lambda config: {**_routed(config), **partial_rotary(config)},
    "minimax-m2": lambda config: {
        "expert_feed_forward_length": config.intermediate_size,
        **partial_rotary(config),
        "expert_gating_func": SIGMOID,
    },
    "phimoe": lambda config: {"attention.layer_norm_epsilon": config.rms_norm_eps},
    "hunyuan-moe": lambda config: {
        "expert_feed_forward_length": config.intermediate_size,
        "expert_shared_feed_forward_length": config.intermediate_size,
    },
    "dots1": _routed,
    "exaone-moe": _exaone,
    "afmoe": _afmoe,
    "mellum": _sliding,
    "gemma4": _gemma,
    "granitehybrid": granite_hybrid,
    "nemotron_h_moe": nemotron,
    "jamba": jamba,
    "kimi-linear": _kimi,
    "ernie4_5-moe": _ernie,
    "hy_v3": _hy,
    "deepseek2": _latent,
    "mistral4": _latent,
    "deepseek32": _indexed,
    "glm-dsa": _indexed,
    "deepseek": _deepseek,
    "grok": _grok,
    "dbrx": _dbrx,
    "llama4": _llama4,
}
