"""What llama.cpp calls the parts of each architecture, and what Hugging Face does. A new one is a line in `KNOWN`.

llama.cpp's names: https://github.com/ggml-org/llama.cpp/blob/master/gguf-py/gguf/constants.py; what its conversion
does to tensors: convert_hf_to_gguf.py there. transformers' own reader of GGUF does not know most MoE architectures,
and leaves the experts' sizes of those it does at its defaults (5.23).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.core_model_loading import (
    Concatenate,
    ConversionOps,
    Transpose,
    WeightConverter,
    WeightRenaming,
    WeightTransform,
)

from moe_local.checkpoint.gguf_metadata import Metadata, decoder_config, head_dim
from moe_local.errors import CheckpointError, UnsupportedError

OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
PROJECTIONS = ("mlp.experts.{}.gate_proj", "mlp.experts.{}.up_proj", "mlp.experts.{}.down_proj")


@dataclass(frozen=True)
class GgufArchitecture:
    """How a GGUF file of an architecture reads as a Hugging Face checkpoint.

    `config` gives the fields of config.json; `names` are the parts of a layer, and whole names of tensors where
    the suffix differs; `experts` are patterns for the three projections of an expert (gate, up, down), and
    `conversions` make of them what transformers calls otherwise.
    """

    model_type: str
    model_class: str
    config: Callable[[Metadata], dict[str, Any]]
    experts: tuple[str, str, str] = PROJECTIONS
    names: Mapping[str, str] = field(default_factory=dict)
    outside: Mapping[str, str] = field(default_factory=lambda: OUTSIDE)  # of all layers
    rotary_permuted: bool = False  # rows of q and k: each head's rotary halves interleaved
    rope_factors: bool = False  # tensors of the file may divide rotary frequencies
    conversions: Callable[[], tuple[WeightTransform, ...]] = tuple


ATTENTION = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
}
QK_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
ROUTER = {"ffn_gate_inp": "mlp.gate"}
MLP = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
SHARED_EXPERT = {
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}


_KV_HEADS = "lfm2moe.attention.head_count_kv"  # one for each layer there, 0 for a convolution


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


def _mixtral(given: Metadata) -> dict[str, Any]:
    if given.integer("expert_count", 0) == 0:
        raise UnsupportedError(
            f"{given.file} is a dense model: it has no experts to page", remedy="name a Mixture-of-Experts model"
        )
    return {
        **decoder_config(given),
        "head_dim": head_dim(given),
        "intermediate_size": given.expert_width("feed_forward_length"),
        "num_local_experts": given.expert_count(),
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


def _glm4(given: Metadata) -> dict[str, Any]:
    base = decoder_config(given)
    base["num_hidden_layers"] -= given.integer("nextn_predict_layers", 0)
    base["rope_parameters"]["partial_rotary_factor"] = given.integer("rope.dimension_count") / head_dim(given)
    return {
        **base,
        "head_dim": head_dim(given),
        "intermediate_size": given.integer("feed_forward_length"),
        "moe_intermediate_size": given.expert_width(),
        "n_routed_experts": given.expert_count(),
        "n_shared_experts": given.integer("expert_shared_count"),
        "num_experts_per_tok": given.integer("expert_used_count"),
        "first_k_dense_replace": given.integer("leading_dense_block_count", 0),
        "num_mtp_layers": 0,
        "n_group": given.integer("expert_group_count", 1),
        "topk_group": given.integer("expert_group_used_count", 1),
        "norm_topk_prob": given.flag("expert_weights_norm", True),
        "routed_scaling_factor": given.number("expert_weights_scale", 1.0),
        "attention_bias": "blk.0.attn_q.bias" in given.tensors,
        "use_qk_norm": "blk.0.attn_q_norm.weight" in given.tensors,
    }


def _lfm2(given: Metadata) -> dict[str, Any]:
    heads = given.values.get(_KV_HEADS)
    if not isinstance(heads, list) or not heads or any(type(count) is not int for count in heads):
        raise CheckpointError(f"{given.file} cannot be understood: its attention.head_count_kv is {heads!r}")
    one = Metadata(given.file, given.architecture, {**given.values, _KV_HEADS: max(heads)}, given.tensors)
    base = decoder_config(one)
    return {
        **base,
        "norm_eps": base.pop("rms_norm_eps"),
        "layer_types": ["full_attention" if count else "conv" for count in heads],
        "conv_L_cache": given.integer("shortconv.l_cache"),
        "conv_bias": any(name.endswith("shortconv.in_proj.bias") for name in given.tensors),
        "intermediate_size": given.integer("feed_forward_length"),
        "moe_intermediate_size": given.expert_width(),
        "num_experts": given.expert_count(),
        "num_experts_per_tok": given.integer("expert_used_count"),
        "num_dense_layers": given.integer("leading_dense_block_count", 0),
        "use_expert_bias": any(name.endswith("exp_probs_b.bias") for name in given.tensors),
        "norm_topk_prob": given.flag("expert_weights_norm", True),
        "routed_scaling_factor": given.number("expert_weights_scale", 1.0),
    }


def _granite(given: Metadata) -> dict[str, Any]:
    scales = {
        "embedding_multiplier": "embedding_scale",
        "residual_multiplier": "residual_scale",
        "attention_multiplier": "attention.scale",
        "logits_scaling": "logit_scale",
    }
    return {
        **decoder_config(given),
        **{name: given.number(key) for name, key in scales.items()},
        "intermediate_size": given.expert_width("feed_forward_length"),
        "num_local_experts": given.expert_count(),
        "num_experts_per_tok": given.integer("expert_used_count"),
    }


def _one_after_the_other() -> tuple[WeightTransform, ...]:
    """Experts whose gate and up projections follow each other in one tensor of all experts."""
    given, wanted = r"block_sparse_moe\.experts\.stacked", "block_sparse_moe.experts"
    gate_and_up = [rf"{given}_gate\.weight", rf"{given}_up\.weight"]
    return (
        WeightConverter(gate_and_up, f"{wanted}.gate_up_proj", [Concatenate(dim=1)]),
        WeightRenaming(rf"{given}_down\.weight", f"{wanted}.down_proj"),
    )


KNOWN: dict[str, GgufArchitecture] = {
    "qwen3moe": GgufArchitecture(
        "qwen3_moe", "Qwen3MoeForCausalLM", _qwen3, names={**ATTENTION, **QK_NORMS, **ROUTER}
    ),
    "qwen2moe": GgufArchitecture(
        "qwen2_moe", "Qwen2MoeForCausalLM", _qwen2, names={**ATTENTION, **ROUTER, **SHARED_EXPERT}
    ),
    "llama": GgufArchitecture(
        "mixtral",
        "MixtralForCausalLM",
        _mixtral,
        ("block_sparse_moe.experts.{}.w1", "block_sparse_moe.experts.{}.w3", "block_sparse_moe.experts.{}.w2"),
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
    "glm4moe": GgufArchitecture(
        "glm4_moe",
        "Glm4MoeForCausalLM",
        _glm4,
        names={
            **ATTENTION,
            **QK_NORMS,
            **ROUTER,
            **MLP,
            "post_attention_norm": "post_attention_layernorm",
            "exp_probs_b.bias": "mlp.gate.e_score_correction_bias",
            "ffn_gate_shexp": "mlp.shared_experts.gate_proj",
            "ffn_up_shexp": "mlp.shared_experts.up_proj",
            "ffn_down_shexp": "mlp.shared_experts.down_proj",
        },
    ),
    "granitemoe": GgufArchitecture(
        "granitemoe",
        "GraniteMoeForCausalLM",
        _granite,
        names={
            **ATTENTION,
            "ffn_gate_inp": "block_sparse_moe.router",
            "ffn_gate_exps": "block_sparse_moe.experts.stacked_gate",
            "ffn_up_exps": "block_sparse_moe.experts.stacked_up",
            "ffn_down_exps": "block_sparse_moe.experts.stacked_down",
        },
        rotary_permuted=True,
        rope_factors=True,
        conversions=_one_after_the_other,
    ),
    "lfm2moe": GgufArchitecture(
        "lfm2_moe",
        "Lfm2MoeForCausalLM",
        _lfm2,
        ("feed_forward.experts.{}.w1", "feed_forward.experts.{}.w3", "feed_forward.experts.{}.w2"),
        {
            **ATTENTION,
            "attn_norm": "operator_norm",
            "attn_output": "self_attn.out_proj",
            "attn_q_norm": "self_attn.q_layernorm",
            "attn_k_norm": "self_attn.k_layernorm",
            "ffn_norm": "ffn_norm",
            "ffn_gate": "feed_forward.w1",
            "ffn_up": "feed_forward.w3",
            "ffn_down": "feed_forward.w2",
            "ffn_gate_inp": "feed_forward.gate",
            "exp_probs_b.bias": "feed_forward.expert_bias",
            "shortconv.conv": "conv.conv",
            "shortconv.in_proj": "conv.in_proj",
            "shortconv.out_proj": "conv.out_proj",
        },
        {**OUTSIDE, "token_embd_norm": "model.embedding_norm"},
    ),
}
