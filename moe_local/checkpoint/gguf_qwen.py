"""GGUF files of the Qwen family: qwen2moe, qwen3moe, qwen3vlmoe (its text), qwen3next and qwen35moe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moe_local.checkpoint.gguf_architecture import (
    ATTENTION,
    QK_NORMS,
    ROUTER,
    SHARED_EXPERT,
    GgufArchitecture,
    Undo,
    stack,
)
from moe_local.checkpoint.gguf_metadata import Metadata, decoder_config, head_dim


def _qwen3(given: Metadata) -> dict[str, Any]:
    return {
        **decoder_config(given),
        "head_dim": head_dim(given),
        "intermediate_size": given.integer("feed_forward_length", 0) or given.expert_width(),
        "moe_intermediate_size": given.expert_width(),
        "num_experts": given.expert_count(),
        "num_experts_per_tok": given.integer("expert_used_count"),
        "norm_topk_prob": given.flag("expert_weights_norm", True),  # as llama.cpp does where the file does not say
    }


def _qwen2(given: Metadata) -> dict[str, Any]:
    return {
        **decoder_config(given),
        "intermediate_size": given.integer("feed_forward_length", 0) or given.shared_width(),
        "moe_intermediate_size": given.expert_width(),
        "shared_expert_intermediate_size": given.shared_width(),
        "num_experts": given.expert_count(),
        "num_experts_per_tok": given.integer("expert_used_count"),
        "norm_topk_prob": given.flag("expert_weights_norm", False),
    }


def _linear(given: Metadata) -> dict[str, Any]:
    """Three layers of linear attention to one of the other, and an expert that serves every token."""
    base = _qwen2(given)
    width, value_heads = given.integer("ssm.inner_size"), given.integer("ssm.time_step_rank")
    interval = given.integer("full_attention_interval", 4)
    base["rope_parameters"]["partial_rotary_factor"] = given.integer("rope.dimension_count") / head_dim(given)
    return {
        **base,
        "head_dim": head_dim(given),
        "layer_types": [
            "full_attention" if number % interval == 0 else "linear_attention"
            for number in range(1, base["num_hidden_layers"] + 1)
        ],
        "linear_conv_kernel_dim": given.integer("ssm.conv_kernel"),
        "linear_key_head_dim": given.integer("ssm.state_size"),
        "linear_value_head_dim": width // value_heads,
        "linear_num_key_heads": given.integer("ssm.group_count"),
        "linear_num_value_heads": value_heads,
        "norm_topk_prob": given.flag("expert_weights_norm", True),
    }


def _qwen35(given: Metadata) -> dict[str, Any]:
    base = _linear(given)
    base.pop("norm_topk_prob")
    return base


_LINEAR_NAMES = {
    **ATTENTION,
    **QK_NORMS,
    **ROUTER,
    **SHARED_EXPERT,
    "post_attention_norm": "post_attention_layernorm",
    "ssm_conv1d": "linear_attn.conv1d",
    "ssm_dt.bias": "linear_attn.dt_bias",
    "ssm_norm": "linear_attn.norm",
    "ssm_out": "linear_attn.out_proj",
}
_ABOVE_ONE = {
    "attn_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
}
_NORMS = tuple(Undo(f"{ours}.weight", "less-one", (f"{theirs}.weight",)) for theirs, ours in _ABOVE_ONE.items())
_LAST_NORM = (Undo("model.norm.weight", "less-one", ("output_norm.weight",)),)


def _key_heads(config: Mapping[str, Any]) -> dict[str, int]:
    return {"key_heads": config["linear_num_key_heads"]}


def _heads(config: Mapping[str, Any]) -> dict[str, int]:
    return {**_key_heads(config), "value_heads": config["linear_num_value_heads"], "width": 1}


def _wide_heads(config: Mapping[str, Any]) -> dict[str, int]:
    return {**_heads(config), "width": config["linear_value_head_dim"]}


def _after_keys(config: Mapping[str, Any]) -> dict[str, int]:
    return {
        **_wide_heads(config),
        "before": 2 * config["linear_num_key_heads"] * config["linear_key_head_dim"],
    }


QWEN = {
    "qwen3moe": GgufArchitecture(
        "qwen3_moe", "Qwen3MoeForCausalLM", _qwen3, names={**ATTENTION, **QK_NORMS, **ROUTER}
    ),
    "qwen3vlmoe": GgufArchitecture(  # its text alone is that model's
        "qwen3_moe", "Qwen3MoeForCausalLM", _qwen3, names={**ATTENTION, **QK_NORMS, **ROUTER}
    ),
    "qwen2moe": GgufArchitecture(
        "qwen2_moe", "Qwen2MoeForCausalLM", _qwen2, names={**ATTENTION, **ROUTER, **SHARED_EXPERT}
    ),
    "qwen3next": GgufArchitecture(
        "qwen3_next",
        "Qwen3NextForCausalLM",
        _linear,
        names={**_LINEAR_NAMES, "ssm_ba": "linear_attn.in_proj_ba", "ssm_in": "linear_attn.in_proj_qkvz"},
        undo=(
            *_NORMS,
            Undo("linear_attn.A_log", "decay", ("ssm_a",)),
            Undo(
                "linear_attn.in_proj_qkvz.weight", "by-key-head", ("attn_qkv.weight", "attn_gate.weight"), _key_heads
            ),
        ),
        undo_outside=_LAST_NORM,
    ),
    "qwen35moe": GgufArchitecture(
        "qwen3_5_moe_text",
        "Qwen3_5MoeForCausalLM",
        _qwen35,
        names=_LINEAR_NAMES,
        undo=(
            *_NORMS,
            Undo("linear_attn.A_log", "grouped-decays", ("ssm_a",), _heads),
            Undo("linear_attn.dt_bias", "grouped", ("ssm_dt.bias",), _heads),
            Undo("linear_attn.in_proj_a.weight", "grouped", ("ssm_alpha.weight",), _heads),
            Undo("linear_attn.in_proj_b.weight", "grouped", ("ssm_beta.weight",), _heads),
            Undo("linear_attn.in_proj_z.weight", "grouped", ("attn_gate.weight",), _wide_heads),
            Undo("linear_attn.in_proj_qkv.weight", "grouped", ("attn_qkv.weight",), _after_keys),
            Undo("linear_attn.conv1d.weight", "grouped-filters", ("ssm_conv1d.weight",), _after_keys),
            Undo("linear_attn.out_proj.weight", "grouped-columns", ("ssm_out.weight",), _wide_heads),
        ),
        undo_outside=_LAST_NORM,
        conversions=stack,
    ),
}
