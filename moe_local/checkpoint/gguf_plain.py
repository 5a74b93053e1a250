"""GGUF files of models whose layers are all alike: experts after full attention, chosen by a softmax."""

from __future__ import annotations

from typing import Any

import torch
from transformers.core_model_loading import (
    ConversionOps,
    Transpose,
    WeightConverter,
    WeightRenaming,
    WeightTransform,
)

from moe_local.checkpoint.gguf_architecture import (
    ATTENTION,
    QK_NORMS,
    ROUTER,
    GgufArchitecture,
    Undo,
    stack,
)
from moe_local.checkpoint.gguf_metadata import Metadata, decoder_config, head_dim


def _mixtral(given: Metadata) -> dict[str, Any]:
    experts = given.expert_count()
    return {
        **decoder_config(given),
        "head_dim": head_dim(given),
        "intermediate_size": given.expert_width("feed_forward_length"),
        "num_local_experts": experts,
        "num_experts_per_tok": given.integer("expert_used_count"),
        "sliding_window": None,
    }


def _olmoe(given: Metadata) -> dict[str, Any]:
    return {
        **decoder_config(given),
        "intermediate_size": given.expert_width("feed_forward_length"),
        "num_experts": given.expert_count(),
        "num_experts_per_tok": given.integer("expert_used_count"),
        "clip_qkv": given.number("attention.clamp_kqv") if given.has("attention.clamp_kqv") else None,
        "norm_topk_prob": False,
    }


def _gpt_oss(given: Metadata) -> dict[str, Any]:
    base = decoder_config(given)
    if base["rope_parameters"]["rope_type"] == "yarn":
        base["rope_parameters"]["truncate"] = False  # as it was trained, which the file has no field for
    return {
        **base,
        "head_dim": head_dim(given),
        "intermediate_size": given.expert_width(),
        "num_local_experts": given.expert_count(),
        "num_experts_per_tok": given.integer("expert_used_count"),
        "sliding_window": given.integer("attention.sliding_window"),
    }


def _alternate() -> tuple[WeightTransform, ...]:
    """Experts whose gate and up projections alternate in one matrix [experts, in, out], and so do their biases."""
    given, wanted = r"mlp\.experts\.stacked", "mlp.experts"
    return (
        WeightConverter([rf"{given}_gate\.weight", rf"{given}_up\.weight"], f"{wanted}.gate_up_proj", [Alternate()]),
        WeightConverter([rf"{given}_gate\.bias", rf"{given}_up\.bias"], f"{wanted}.gate_up_proj_bias", [Alternate()]),
        WeightConverter(rf"{given}_down\.weight", f"{wanted}.down_proj", [Transpose(1, 2)]),
        WeightRenaming(rf"{given}_down\.bias", f"{wanted}.down_proj_bias"),
    )


class Alternate(ConversionOps):
    """Two stacks [experts, out(, in)] -> [experts(, in), 2 * out], their outputs in turns."""

    def convert(
        self, input_dict: dict[str, Any], source_patterns: list[str], target_patterns: list[str], **kwargs: Any
    ) -> dict[str, Any]:
        first, second = (input_dict[pattern][0] for pattern in source_patterns)
        stacked = torch.stack([first, second], 2)
        experts, out, _, *rest = stacked.shape
        turns = torch.reshape(stacked, (experts, 2 * out, *rest))
        return {target_patterns[0]: torch.transpose(turns, 1, 2) if rest else turns}


def granite(given: Metadata) -> dict[str, Any]:
    scales = {
        "embedding_multiplier": "embedding_scale",
        "residual_multiplier": "residual_scale",
        "attention_multiplier": "attention.scale",
        "logits_scaling": "logit_scale",
    }
    shared = given.shared_width_or_none()
    also = {
        "model_type": "granitemoeshared",
        "architectures": ["GraniteMoeSharedForCausalLM"],
        "shared_intermediate_size": shared,
    }
    return {
        **decoder_config(given),
        **{name: given.number(key) for name, key in scales.items()},
        "intermediate_size": given.expert_width("feed_forward_length"),
        "num_local_experts": given.expert_count(),
        "num_experts_per_tok": given.integer("expert_used_count"),
        **(also if shared else {}),
    }


def _minimax(given: Metadata) -> dict[str, Any]:
    base = decoder_config(given)
    base["rope_parameters"]["partial_rotary_factor"] = given.integer("rope.dimension_count") / head_dim(given)
    return {
        **base,
        "head_dim": head_dim(given),
        "intermediate_size": given.expert_width(),
        "num_local_experts": given.expert_count(),
        "num_experts_per_tok": given.integer("expert_used_count"),
    }


def _phi(given: Metadata) -> dict[str, Any]:
    return {
        **decoder_config(given),
        "intermediate_size": given.expert_width("feed_forward_length"),
        "num_local_experts": given.expert_count(),
        "num_experts_per_tok": given.integer("expert_used_count"),
        "sliding_window": None,
        "attention_bias": "blk.0.attn_q.bias" in given.tensors,
        "lm_head_bias": "output.bias" in given.tensors,
    }


def _hunyuan(given: Metadata) -> dict[str, Any]:
    return {
        **decoder_config(given),
        "head_dim": head_dim(given),
        "intermediate_size": given.expert_width(),
        "num_experts": given.expert_count(),
        "moe_topk": given.integer("expert_used_count"),
    }


_MIXTRAL = ("block_sparse_moe.experts.{}.w1", "block_sparse_moe.experts.{}.w3", "block_sparse_moe.experts.{}.w2")
GRANITE_EXPERTS = (
    "block_sparse_moe.experts.{}.gate_proj",
    "block_sparse_moe.experts.{}.up_proj",
    "block_sparse_moe.experts.{}.down_proj",
)
GRANITE_SHARED = Undo(
    "shared_mlp.input_linear.weight", "below-each-other", ("ffn_gate_shexp.weight", "ffn_up_shexp.weight")
)


def granite_stack() -> tuple[WeightTransform, ...]:
    return stack("block_sparse_moe.experts")


PLAIN = {
    "llama": GgufArchitecture(
        "mixtral",
        "MixtralForCausalLM",
        _mixtral,
        _MIXTRAL,
        {**ATTENTION, "ffn_gate_inp": "block_sparse_moe.gate"},
        rotary_permuted=True,
        rope_factors=True,
    ),
    "olmoe": GgufArchitecture("olmoe", "OlmoeForCausalLM", _olmoe, names={**ATTENTION, **QK_NORMS, **ROUTER}),
    "gpt-oss": GgufArchitecture(
        "gpt_oss",
        "GptOssForCausalLM",
        _gpt_oss,
        names={
            **ATTENTION,
            "post_attention_norm": "post_attention_layernorm",
            "attn_sinks.weight": "self_attn.sinks",
            "ffn_gate_inp": "mlp.router",
            "ffn_gate_exps": "mlp.experts.stacked_gate",
            "ffn_up_exps": "mlp.experts.stacked_up",
            "ffn_down_exps": "mlp.experts.stacked_down",
        },
        conversions=_alternate,
    ),
    "granitemoe": GgufArchitecture(
        "granitemoe",
        "GraniteMoeForCausalLM",
        granite,
        GRANITE_EXPERTS,
        {
            **ATTENTION,
            "ffn_gate_inp": "block_sparse_moe.router",
            "ffn_down_shexp": "shared_mlp.output_linear",
        },
        rotary_permuted=True,
        rope_factors=True,
        undo=(GRANITE_SHARED,),
        conversions=granite_stack,
    ),
    "minimax-m2": GgufArchitecture(
        "minimax_m2",
        "MiniMaxM2ForCausalLM",
        _minimax,
        ("mlp.experts.{}.w1", "mlp.experts.{}.w3", "mlp.experts.{}.w2"),
        {**ATTENTION, **QK_NORMS, **ROUTER, "exp_probs_b.bias": "mlp.e_score_correction_bias"},
    ),
    "phimoe": GgufArchitecture(
        "phimoe",
        "PhimoeForCausalLM",
        _phi,
        ("mlp.experts.{}.w1", "mlp.experts.{}.w3", "mlp.experts.{}.w2"),
        {**ATTENTION, "ffn_gate_inp": "mlp.router"},
        rope_factors=True,
    ),
    "hunyuan-moe": GgufArchitecture(
        "hunyuan_v1_moe",
        "HunYuanMoEV1ForCausalLM",
        _hunyuan,
        names={
            **ATTENTION,
            "attn_q_norm": "self_attn.query_layernorm",
            "attn_k_norm": "self_attn.key_layernorm",
            "ffn_gate_inp": "mlp.gate.wg",
            "ffn_gate_shexp": "mlp.shared_mlp.gate_proj",
            "ffn_up_shexp": "mlp.shared_mlp.up_proj",
            "ffn_down_shexp": "mlp.shared_mlp.down_proj",
        },
    ),
}
