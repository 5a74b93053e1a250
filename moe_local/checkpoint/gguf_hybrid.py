"""GGUF files of models that have attention in some of their layers only."""

from __future__ import annotations

from typing import Any

from moe_local.checkpoint.gguf_architecture import ATTENTION, OUTSIDE, GgufArchitecture
from moe_local.checkpoint.gguf_metadata import Metadata, decoder_config
from moe_local.errors import CheckpointError

_KV_HEADS = "lfm2moe.attention.head_count_kv"  # one for each layer there, 0 for a convolution


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


HYBRID = {
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
