"""What all files' metadata has of a configuration."""

from __future__ import annotations

from typing import Any

Values = dict[str, Any]
SIGMOID = 2  # of llama.cpp's functions of router scores


def common(config: Any) -> Values:
    head_dim = head_width(config)
    rope = getattr(config, "rope_parameters", None) or {}
    rope, sliding = rope.get("full_attention", rope), rope.get("sliding_attention", {})
    return {
        "context_length": first(config, "max_position_embeddings", "model_max_length"),
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": first(config, "norm_eps", "layer_norm_epsilon", "rms_norm_eps"),
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "rope.freq_base": rope.get("rope_theta"),
        "rope.freq_base_swa": sliding.get("rope_theta"),
        "feed_forward_length": getattr(config, "intermediate_size", None),
        "vocab_size": config.vocab_size,
    }


def head_width(config: Any) -> int:
    return int(config.to_dict().get("head_dim") or config.hidden_size // config.num_attention_heads)


def scaling_of(rope: Values) -> Values:
    if rope.get("rope_type") != "yarn":
        return {}
    return {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": rope["factor"],
        "rope.scaling.original_context_length": rope["original_max_position_embeddings"],
        "rope.scaling.yarn_log_multiplier": rope["mscale_all_dim"] / 10 if "mscale_all_dim" in rope else None,
    }


def experts(config: Any) -> Values:
    return {
        "expert_count": first(config, "num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"),
        "expert_used_count": first(
            config, "num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk", "top_k_experts"
        ),
        "expert_group_count": first(config, "n_group", "num_expert_group"),
        "expert_group_used_count": first(config, "topk_group"),
    }


def first(config: Any, *names: str) -> Any:
    return next((value for name in names if (value := getattr(config, name, None)) is not None), None)


def partial_rotary(config: Any) -> Values:
    share = config.rope_parameters.get("partial_rotary_factor", 1)
    return {"rope.dimension_count": int(head_width(config) * share)}


def wide_experts(config: Any) -> Values:
    return {"expert_feed_forward_length": config.moe_intermediate_size}


def with_shared_expert(config: Any) -> Values:
    return {
        **wide_experts(config),
        "expert_shared_feed_forward_length": config.shared_expert_intermediate_size,
    }
