"""GGUF files of models of latent attention: keys and values out of one short vector a token."""

from __future__ import annotations

from typing import Any

from moe_local.checkpoint.gguf_architecture import BIAS, MLP, ROUTER, SHARED_EXPERTS, GgufArchitecture, Undo, stack
from moe_local.checkpoint.gguf_metadata import Metadata, decoder_config
from moe_local.checkpoint.gguf_shared import dense_then_sparse, routed

_SIGMOID = 2  # of llama.cpp's functions of router scores


def latent(given: Metadata) -> dict[str, Any]:
    base = decoder_config(given)
    rotated = given.integer("rope.dimension_count")
    key = given.integer("attention.key_length_mla", given.integer("attention.key_length"))
    return {
        **base,
        "num_key_value_heads": base["num_attention_heads"],
        "q_lora_rank": given.integer("attention.q_lora_rank") if given.has("attention.q_lora_rank") else None,
        "kv_lora_rank": given.integer("attention.kv_lora_rank"),
        "qk_rope_head_dim": rotated,
        "qk_nope_head_dim": key - rotated,
        "v_head_dim": given.integer("attention.value_length_mla", given.integer("attention.value_length")),
    }


def _deepseek(given: Metadata) -> dict[str, Any]:
    """Versions 2 and 3, and what calls itself so: the later ones add a bias to scores for the choice."""
    base = latent(given)
    chosen = {
        **base,
        **routed(given),
        "intermediate_size": given.integer("feed_forward_length"),
        "first_k_dense_replace": given.integer("leading_dense_block_count", 0),
    }
    if _is_third(given):
        return {**chosen, "model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"]}
    grouped = chosen["n_group"] > 1
    return {
        **chosen,
        "norm_topk_prob": given.flag("expert_weights_norm", False),
        "topk_method": "group_limited_greedy" if grouped else "greedy",
    }


def _is_third(given: Metadata) -> bool:
    gating = given.values.get(f"{given.architecture}.expert_gating_func")
    return gating == _SIGMOID or any(name.endswith("exp_probs_b.bias") for name in given.tensors)


def _mistral(given: Metadata) -> dict[str, Any]:
    base = latent(given)
    base["rope_parameters"]["llama_4_scaling_beta"] = given.number("attention.temperature_scale", 0.0)
    return {
        **base,
        **routed(given),
        "intermediate_size": given.integer("feed_forward_length"),
        "first_k_dense_replace": given.integer("leading_dense_block_count", 0),
    }


def _indexed(given: Metadata) -> dict[str, Any]:
    base = latent(given)
    layers = base["num_hidden_layers"]
    own = given.listed("attention.indexer.types")  # whether a layer chooses tokens itself, or takes the choice before
    kinds = {} if own is None else {"indexer_types": ["full" if each else "shared" for each in own[:layers]]}
    return {
        **base,
        **routed(given),
        "intermediate_size": given.integer("feed_forward_length"),
        "mlp_layer_types": dense_then_sparse(given.integer("leading_dense_block_count", 0), layers),
        "index_n_heads": given.integer("attention.indexer.head_count"),
        "index_head_dim": given.integer("attention.indexer.key_length"),
        "index_topk": given.integer("attention.indexer.top_k"),
        **kinds,
    }


LATENT_ATTENTION = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_q_a": "self_attn.q_a_proj",
    "attn_q_a_norm": "self_attn.q_a_layernorm",
    "attn_q_b": "self_attn.q_b_proj",
    "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
    "attn_kv_a_norm": "self_attn.kv_a_layernorm",
    "attn_kv_b": "self_attn.kv_b_proj",  # before April 2025
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
}
_NAMES = {**LATENT_ATTENTION, **ROUTER, **MLP, **SHARED_EXPERTS, **BIAS}
_INDEXER = {
    "indexer.k_norm": "self_attn.indexer.k_norm",
    "indexer.proj": "self_attn.indexer.weights_proj",
    "indexer.attn_k": "self_attn.indexer.wk",
    "indexer.attn_q_b": "self_attn.indexer.wq_b",
}
SPLIT = Undo("self_attn.kv_b_proj.weight", "kv-b", ("attn_k_b.weight", "attn_v_b.weight"))

LATENT = {
    "deepseek2": GgufArchitecture("deepseek_v2", "DeepseekV2ForCausalLM", _deepseek, names=_NAMES, undo=(SPLIT,)),
    "mistral4": GgufArchitecture(
        "mistral4", "Mistral4ForCausalLM", _mistral, names=_NAMES, undo=(SPLIT,), conversions=stack
    ),
    "deepseek32": GgufArchitecture(
        "deepseek_v32", "DeepseekV32ForCausalLM", _indexed, names={**_NAMES, **_INDEXER}, undo=(SPLIT,)
    ),
    "glm-dsa": GgufArchitecture(
        "glm_moe_dsa", "GlmMoeDsaForCausalLM", _indexed, names={**_NAMES, **_INDEXER}, undo=(SPLIT,)
    ),
}
