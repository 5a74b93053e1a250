"""The metadata of a GGUF file, as llama.cpp's conversion makes it of a model's configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Values = dict[str, Any]
SIGMOID = 2
GEMMA_HEAD = 32  # width of its heads in layers of full attention


def metadata(config: Any, name: str, extra: int) -> Values:
    """By key, without the architecture's `name` before it. `extra` layers predict several tokens at once."""
    own = OWN[name](config) if name in OWN else {}
    rope = getattr(config, "rope_parameters", None) or {}
    scaling = _scaling(rope)
    values = {**_common(config), **scaling, **_experts(config), **own}
    if extra:
        values |= {"block_count": config.num_hidden_layers + extra, "nextn_predict_layers": extra}
    return {key: value for key, value in values.items() if value is not None}


def _common(config: Any) -> Values:
    head_dim = _head_dim(config)
    rope = getattr(config, "rope_parameters", None) or {}
    rope, sliding = rope.get("full_attention", rope), rope.get("sliding_attention", {})
    return {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": _first(config, "norm_eps", "layer_norm_epsilon", "rms_norm_eps"),
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "rope.freq_base": rope.get("rope_theta"),
        "rope.freq_base_swa": sliding.get("rope_theta"),
        "feed_forward_length": getattr(config, "intermediate_size", None),
        "vocab_size": config.vocab_size,
    }


def _head_dim(config: Any) -> int:
    return int(config.to_dict().get("head_dim") or config.hidden_size // config.num_attention_heads)


def _scaling(rope: Values) -> Values:
    if rope.get("rope_type") != "yarn":
        return {}
    return {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": rope["factor"],
        "rope.scaling.original_context_length": rope["original_max_position_embeddings"],
        "rope.scaling.yarn_log_multiplier": rope["mscale_all_dim"] / 10 if "mscale_all_dim" in rope else None,
    }


def _experts(config: Any) -> Values:
    return {
        "expert_count": _first(config, "num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"),
        "expert_used_count": _first(config, "num_experts_per_tok", "moe_k", "moe_topk", "top_k_experts"),
        "expert_group_count": _first(config, "n_group"),
        "expert_group_used_count": _first(config, "topk_group"),
    }


def _first(config: Any, *names: str) -> Any:
    return next((value for name in names if (value := getattr(config, name, None)) is not None), None)


def _partial_rotary(config: Any) -> Values:
    share = config.rope_parameters.get("partial_rotary_factor", 1)
    return {"rope.dimension_count": int(_head_dim(config) * share)}


def _wide_experts(config: Any) -> Values:
    return {"expert_feed_forward_length": config.moe_intermediate_size}


def _qwen2(config: Any) -> Values:
    return {
        **_wide_experts(config),
        "expert_shared_feed_forward_length": config.shared_expert_intermediate_size,
    }


def _linear(config: Any) -> Values:
    return {
        **_qwen2(config),
        **_partial_rotary(config),
        "ssm.conv_kernel": config.linear_conv_kernel_dim,
        "ssm.state_size": config.linear_key_head_dim,
        "ssm.group_count": config.linear_num_key_heads,
        "ssm.time_step_rank": config.linear_num_value_heads,
        "ssm.inner_size": config.linear_value_head_dim * config.linear_num_value_heads,
        "full_attention_interval": config.layer_types.index("full_attention") + 1,
        "rope.dimension_sections": [1, 1, 0, 0],
    }


def _gpt_oss(config: Any) -> Values:
    return {
        "attention.sliding_window": config.sliding_window,
        "expert_feed_forward_length": config.intermediate_size,
    }


def _granite(config: Any) -> Values:
    return {
        "embedding_scale": config.embedding_multiplier,
        "residual_scale": config.residual_multiplier,
        "attention.scale": config.attention_multiplier,
        "logit_scale": config.logits_scaling,
        "expert_shared_feed_forward_length": getattr(config, "shared_intermediate_size", None),
    }


def _lfm2(config: Any) -> Values:
    heads = config.num_key_value_heads
    return {
        **_wide_experts(config),
        "attention.head_count_kv": [heads if kind == "full_attention" else 0 for kind in config.layer_types],
        "shortconv.l_cache": config.conv_L_cache,
        "leading_dense_block_count": config.num_dense_layers,
        "expert_gating_func": SIGMOID,
    }


def _routed(config: Any) -> Values:
    """DeepSeek-V3's router, and its kin's."""
    return {
        **_wide_experts(config),
        "expert_shared_count": config.n_shared_experts,
        "expert_weights_scale": config.routed_scaling_factor,
        "expert_weights_norm": config.norm_topk_prob,
        "leading_dense_block_count": _dense(config),
        "expert_gating_func": SIGMOID,
    }


def _dense(config: Any) -> int:
    kinds = getattr(config, "mlp_layer_types", None)
    return int(getattr(config, "first_k_dense_replace", 0) if kinds is None else kinds.count("dense"))


def _latent(config: Any) -> Values:
    """Of which the file says what a cache of the latent vectors is told."""
    rank, rotated = config.kv_lora_rank, config.qk_rope_head_dim
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
        "attention.temperature_length": config.rope_parameters.get("original_max_position_embeddings"),
        "attention.temperature_scale": config.rope_parameters.get("llama_4_scaling_beta"),
    }


def _indexed(config: Any) -> Values:
    return {
        **_latent(config),
        "attention.layer_norm_epsilon": 1e-6,
        "attention.indexer.head_count": config.index_n_heads,
        "attention.indexer.key_length": config.index_head_dim,
        "attention.indexer.top_k": config.index_topk,
    }


def _ernie(config: Any) -> Values:
    return {
        **_wide_experts(config),
        "interleave_moe_layer_step": config.moe_layer_interval,
        "leading_dense_block_count": config.moe_layer_start_index,
        "expert_shared_count": config.moe_num_shared_experts,
        "expert_shared_feed_forward_length": config.moe_intermediate_size * config.moe_num_shared_experts,
    }


def _hy(config: Any) -> Values:
    return {
        **_wide_experts(config),
        "expert_shared_count": config.num_shared_experts,
        "expert_shared_feed_forward_length": config.num_shared_experts * config.moe_intermediate_size,
        "expert_weights_scale": config.router_scaling_factor,
        "expert_weights_norm": True,
        "leading_dense_block_count": config.mlp_layer_types.count("dense"),
        "expert_gating_func": SIGMOID,
    }


def _sliding(config: Any) -> Values:
    return {
        **_wide_experts(config),
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
        **_wide_experts(config),
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
        "attention.key_length_swa": _head_dim(config),
        "attention.value_length_swa": _head_dim(config),
        "attention.shared_kv_layers": config.num_kv_shared_layers,
        "embedding_length_per_layer_input": config.hidden_size_per_layer_input,
        "final_logit_softcapping": config.final_logit_softcapping,
        "rope.dimension_count": GEMMA_HEAD,
        "rope.dimension_count_swa": _head_dim(config),
    }


def _granite_hybrid(config: Any) -> Values:
    heads = config.num_key_value_heads
    return {
        **_granite(config),
        "attention.head_count_kv": [heads if kind == "full_attention" else 0 for kind in config.layer_types],
        "rope.scaling.finetuned": config.position_embedding_type == "rope",
        "rope.dimension_count": _head_dim(config),
        "ssm.conv_kernel": config.mamba_d_conv,
        "ssm.state_size": config.mamba_d_state,
        "ssm.group_count": config.mamba_n_groups,
        "ssm.inner_size": config.mamba_n_heads * config.mamba_d_head,
        "ssm.time_step_rank": config.mamba_n_heads,
    }


def _nemotron(config: Any) -> Values:
    kinds, heads = config.layers_block_type, config.num_key_value_heads
    return {
        **_wide_experts(config),
        "attention.layer_norm_epsilon": config.layer_norm_epsilon,
        "attention.head_count_kv": [heads if kind == "full_attention" else 0 for kind in kinds],
        "feed_forward_length": [config.moe_intermediate_size if kind == "moe" else 0 for kind in kinds],
        "expert_shared_count": config.n_shared_experts,
        "expert_shared_feed_forward_length": config.moe_shared_expert_intermediate_size,
        "expert_weights_norm": config.norm_topk_prob,
        "expert_weights_scale": config.routed_scaling_factor,
        "expert_gating_func": SIGMOID,
        "moe_latent_size": config.moe_latent_size,
        "ssm.conv_kernel": config.conv_kernel,
        "ssm.state_size": config.ssm_state_size,
        "ssm.group_count": config.n_groups,
        "ssm.inner_size": config.mamba_num_heads * config.mamba_head_dim,
        "ssm.time_step_rank": config.mamba_num_heads,
    }


def _jamba(config: Any) -> Values:
    period, offset = config.attn_layer_period, config.attn_layer_offset
    heads = config.num_key_value_heads
    return {
        "attention.head_count_kv": [heads if n % period == offset else 0 for n in range(config.num_hidden_layers)],
        "ssm.conv_kernel": config.mamba_d_conv,
        "ssm.state_size": config.mamba_d_state,
        "ssm.inner_size": config.mamba_expand * config.hidden_size,
        "ssm.time_step_rank": config.mamba_dt_rank,
    }


OWN: dict[str, Callable[[Any], Values]] = {
    "qwen3moe": _wide_experts,
    "qwen2moe": _qwen2,
    "qwen3next": _linear,
    "qwen35moe": _linear,
    "gpt-oss": _gpt_oss,
    "granitemoe": _granite,
    "lfm2moe": _lfm2,
    "glm4moe": lambda config: {**_routed(config), **_partial_rotary(config)},
    "minimax-m2": lambda config: {
        "expert_feed_forward_length": config.intermediate_size,
        **_partial_rotary(config),
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
    "granitehybrid": _granite_hybrid,
    "nemotron_h_moe": _nemotron,
    "jamba": _jamba,
    "ernie4_5-moe": _ernie,
    "hy_v3": _hy,
    "deepseek2": _latent,
    "mistral4": _latent,
    "deepseek32": _indexed,
    "glm-dsa": _indexed,
}
