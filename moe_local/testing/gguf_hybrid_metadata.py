"""Metadata of files of models that have attention in some of their layers only, and of Granite."""

from __future__ import annotations

from typing import Any

from moe_local.testing.gguf_common import (
    SIGMOID,
    Values,
    head_width,
    partial_rotary,
    wide_experts,
    with_shared_expert,
)


def linear(config: Any) -> Values:
    return {
        **with_shared_expert(config),
        **partial_rotary(config),
        "ssm.conv_kernel": config.linear_conv_kernel_dim,
        "ssm.state_size": config.linear_key_head_dim,
        "ssm.group_count": config.linear_num_key_heads,
        "ssm.time_step_rank": config.linear_num_value_heads,
        "ssm.inner_size": config.linear_value_head_dim * config.linear_num_value_heads,
        "full_attention_interval": config.layer_types.index("full_attention") + 1,
        "rope.dimension_sections": [1, 1, 0, 0],
    }


def granite(config: Any) -> Values:
    return {
        "embedding_scale": config.embedding_multiplier,
        "residual_scale": config.residual_multiplier,
        "attention.scale": config.attention_multiplier,
        "logit_scale": config.logits_scaling,
        "expert_shared_feed_forward_length": getattr(config, "shared_intermediate_size", None),
    }


def lfm2(config: Any) -> Values:
    heads = config.num_key_value_heads
    return {
        **wide_experts(config),
        "attention.head_count_kv": [heads if kind == "full_attention" else 0 for kind in config.layer_types],
        "shortconv.l_cache": config.conv_L_cache,
        "leading_dense_block_count": config.num_dense_layers,
        "expert_gating_func": SIGMOID,
    }


def granite_hybrid(config: Any) -> Values:
    heads = config.num_key_value_heads
    return {
        **granite(config),
        "attention.head_count_kv": [heads if kind == "full_attention" else 0 for kind in config.layer_types],
        "rope.scaling.finetuned": config.position_embedding_type == "rope",
        "rope.dimension_count": head_width(config),
        "ssm.conv_kernel": config.mamba_d_conv,
        "ssm.state_size": config.mamba_d_state,
        "ssm.group_count": config.mamba_n_groups,
        "ssm.inner_size": config.mamba_n_heads * config.mamba_d_head,
        "ssm.time_step_rank": config.mamba_n_heads,
    }


def nemotron(config: Any) -> Values:
    kinds, heads = config.layers_block_type, config.num_key_value_heads
    return {
        **wide_experts(config),
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


def jamba(config: Any) -> Values:
    period, offset = config.attn_layer_period, config.attn_layer_offset
    heads = config.num_key_value_heads
    return {
        "attention.head_count_kv": [heads if n % period == offset else 0 for n in range(config.num_hidden_layers)],
        "ssm.conv_kernel": config.mamba_d_conv,
        "ssm.state_size": config.mamba_d_state,
        "ssm.inner_size": config.mamba_expand * config.hidden_size,
        "ssm.time_step_rank": config.mamba_dt_rank,
    }
