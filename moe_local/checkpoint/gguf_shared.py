"""GGUF files of models with dense layers before those of experts, or experts that serve every token beside them."""

from __future__ import annotations

from typing import Any

from moe_local.checkpoint.gguf_architecture import (
    ATTENTION,
    BIAS,
    MLP,
    QK_NORMS,
    ROUTER,
    SHARED_EXPERTS,
    GgufArchitecture,
    Undo,
)
from moe_local.checkpoint.gguf_metadata import Metadata, decoder_config, head_dim


def routed(given: Metadata) -> dict[str, Any]:
    """The choice of experts as DeepSeek-V3 makes it, and who has learned from that."""
    return {
        "moe_intermediate_size": given.expert_width(),
        "n_routed_experts": given.expert_count(),
        "n_shared_experts": given.integer("expert_shared_count", 0),
        "num_experts_per_tok": given.integer("expert_used_count"),
        **given.expert_groups(),
        "norm_topk_prob": given.flag("expert_weights_norm", True),
        "routed_scaling_factor": given.number("expert_weights_scale", 1.0),
    }


def _glm4(given: Metadata) -> dict[str, Any]:
    base = decoder_config(given)
    base["rope_parameters"]["partial_rotary_factor"] = given.integer("rope.dimension_count") / head_dim(given)
    return {
        **base,
        "head_dim": head_dim(given),
        "intermediate_size": given.integer("feed_forward_length", given.expert_width()),
        **routed(given),
        "first_k_dense_replace": given.integer("leading_dense_block_count", 0),
        "num_mtp_layers": 0,
        "attention_bias": "blk.0.attn_q.bias" in given.tensors,
        "use_qk_norm": "blk.0.attn_q_norm.weight" in given.tensors,
    }


def _dots(given: Metadata) -> dict[str, Any]:
    base = decoder_config(given)
    return {
        **base,
        "head_dim": head_dim(given),
        "intermediate_size": given.integer("feed_forward_length"),
        **routed(given),
        "norm_topk_prob": given.flag("expert_weights_norm", False),
        "first_k_dense_replace": given.integer("leading_dense_block_count", 0),
        "attention_bias": "blk.0.attn_q.bias" in given.tensors,
        "layer_types": ["full_attention"] * base["num_hidden_layers"],
    }


def _ernie(given: Metadata) -> dict[str, Any]:
    base = decoder_config(given)
    width = given.expert_width()
    return {
        **base,
        "intermediate_size": given.integer("feed_forward_length"),
        "moe_intermediate_size": width,
        "moe_num_experts": given.expert_count(),
        "moe_k": given.integer("expert_used_count"),
        "moe_num_shared_experts": given.shared_width_or_none() // width,
        "moe_layer_start_index": given.integer("leading_dense_block_count", 0),
        "moe_layer_end_index": base["num_hidden_layers"] - 1,
        "moe_layer_interval": given.integer("interleave_moe_layer_step", 1),
        "use_bias": "blk.0.attn_q.bias" in given.tensors,
    }


def _hy(given: Metadata) -> dict[str, Any]:
    base = decoder_config(given)
    dense = given.integer("leading_dense_block_count", 0)
    return {
        **base,
        "head_dim": head_dim(given),
        "intermediate_size": given.integer("feed_forward_length"),
        "moe_intermediate_size": given.expert_width(),
        "num_experts": given.expert_count(),
        "num_experts_per_tok": given.integer("expert_used_count"),
        "num_shared_experts": given.integer("expert_shared_count", 1),
        "router_scaling_factor": given.number("expert_weights_scale", 1.0),
        "mlp_layer_types": dense_then_sparse(dense, base["num_hidden_layers"]),
    }


def dense_then_sparse(dense: int, layers: int) -> list[str]:
    return ["dense" if number < dense else "sparse" for number in range(layers)]


_NAMES = {**ATTENTION, **ROUTER, **MLP, **SHARED_EXPERTS}

SHARED = {
    "glm4moe": GgufArchitecture(
        "glm4_moe",
        "Glm4MoeForCausalLM",
        _glm4,
        names={**_NAMES, **QK_NORMS, **BIAS, "post_attention_norm": "post_attention_layernorm"},
    ),
    "dots1": GgufArchitecture("dots1", "Dots1ForCausalLM", _dots, names={**_NAMES, **QK_NORMS, **BIAS}),
    "ernie4_5-moe": GgufArchitecture(
        "ernie4_5_moe",
        "Ernie4_5_MoeForCausalLM",
        _ernie,
        names=_NAMES,
        undo=(Undo("mlp.gate.moe_statics.e_score_correction_bias", "one-row", ("exp_probs_b.bias",)),),
    ),
    "hy_v3": GgufArchitecture(
        "hy_v3",
        "HYV3ForCausalLM",
        _hy,
        names={
            **_NAMES,
            **QK_NORMS,
            "exp_probs_b": "mlp.e_score_correction_bias",
            "exp_probs_b.bias": "mlp.e_score_correction_bias",
        },
    ),
}
