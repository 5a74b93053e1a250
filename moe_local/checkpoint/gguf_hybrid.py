"""GGUF files of models that have attention in some of their layers only."""

from __future__ import annotations

from typing import Any

from moe_local.checkpoint.gguf_architecture import (
    ATTENTION,
    BIAS,
    MLP,
    OUTSIDE,
    ROUTER,
    SHARED_EXPERTS,
    GgufArchitecture,
    Undo,
)
from moe_local.checkpoint.gguf_latent import LATENT_ATTENTION, SPLIT, latent
from moe_local.checkpoint.gguf_metadata import Metadata, decoder_config, head_dim
from moe_local.checkpoint.gguf_plain import GRANITE_EXPERTS, GRANITE_SHARED, granite, granite_stack
from moe_local.checkpoint.gguf_shared import dense_then_sparse, routed


def _lfm2(given: Metadata) -> dict[str, Any]:
    base = decoder_config(given)
    heads = given.each("attention.head_count_kv", base["num_hidden_layers"])  # 0 for a convolution
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


def _state_space(given: Metadata) -> dict[str, Any]:
    """Mamba's sizes, as Granite calls them."""
    inner, heads = given.integer("ssm.inner_size"), given.integer("ssm.time_step_rank")
    return {
        "mamba_n_heads": heads,
        "mamba_d_head": inner // heads,
        "mamba_n_groups": given.integer("ssm.group_count"),
        "mamba_d_state": given.integer("ssm.state_size"),
        "mamba_d_conv": given.integer("ssm.conv_kernel"),
        "mamba_expand": inner // given.integer("embedding_length"),
        "mamba_conv_bias": any(name.endswith("ssm_conv1d.bias") for name in given.tensors),
        "mamba_proj_bias": any(name.endswith("ssm_in.bias") for name in given.tensors),
    }


def _granite(given: Metadata) -> dict[str, Any]:
    base = granite(given)
    heads = given.each("attention.head_count_kv", base["num_hidden_layers"])
    return {
        **base,
        **_state_space(given),
        "model_type": "granitemoehybrid",
        "architectures": ["GraniteMoeHybridForCausalLM"],
        "layer_types": ["full_attention" if count else "linear_attention" for count in heads],
        "shared_intermediate_size": given.shared_width_or_none(),
        "position_embedding_type": "rope" if given.flag("rope.scaling.finetuned", False) else None,
    }


def _nemotron(given: Metadata) -> dict[str, Any]:
    base = decoder_config(given)
    layers = base["num_hidden_layers"]
    heads, widths = given.each("attention.head_count_kv", layers), given.each("feed_forward_length", layers)
    kinds = [_nemotron_kind(given, n, heads[n], widths[n]) for n in range(layers)]
    sizes = _state_space(given)
    dense = [width for kind, width in zip(kinds, widths, strict=False) if kind == "mlp"]
    return {
        **base,
        "layers_block_type": kinds,
        "layer_norm_epsilon": base.pop("rms_norm_eps"),
        "head_dim": head_dim(given),
        "intermediate_size": max(dense, default=given.expert_width()),
        "ssm_state_size": sizes["mamba_d_state"],
        "mamba_num_heads": sizes["mamba_n_heads"],
        "mamba_head_dim": sizes["mamba_d_head"],
        "n_groups": sizes["mamba_n_groups"],
        "conv_kernel": sizes["mamba_d_conv"],
        "use_conv_bias": sizes["mamba_conv_bias"],
        "n_routed_experts": given.expert_count(),
        "n_shared_experts": given.integer("expert_shared_count", 1),
        "moe_intermediate_size": given.expert_width(),
        "moe_shared_expert_intermediate_size": given.shared_width(),
        "moe_latent_size": given.integer("moe_latent_size") if given.has("moe_latent_size") else None,
        "num_experts_per_tok": given.integer("expert_used_count"),
        **given.expert_groups(),
        "norm_topk_prob": given.flag("expert_weights_norm", True),
        "routed_scaling_factor": given.number("expert_weights_scale", 1.0),
    }


def _nemotron_kind(given: Metadata, layer: int, heads: int, width: int) -> str:
    if heads:
        return "full_attention"
    if not width:
        return "linear_attention"
    return "moe" if f"blk.{layer}.ffn_gate_inp.weight" in given.tensors else "mlp"


def _jamba(given: Metadata) -> dict[str, Any]:
    base = decoder_config(given)
    layers = base["num_hidden_layers"]
    heads = given.each("attention.head_count_kv", layers)
    attention = _period([n for n in range(layers) if heads[n]], layers)
    experts = _period([n for n in range(layers) if f"blk.{n}.ffn_gate_inp.weight" in given.tensors], layers)
    return {
        **base,
        "intermediate_size": given.integer("feed_forward_length"),
        "num_experts": given.expert_count(),
        "num_experts_per_tok": given.integer("expert_used_count"),
        "attn_layer_offset": attention[0],
        "attn_layer_period": attention[1],
        "expert_layer_offset": experts[0],
        "expert_layer_period": experts[1],
        "mamba_d_state": given.integer("ssm.state_size"),
        "mamba_d_conv": given.integer("ssm.conv_kernel"),
        "mamba_expand": given.integer("ssm.inner_size") // base["hidden_size"],
        "mamba_dt_rank": given.integer("ssm.time_step_rank"),
        "mamba_conv_bias": any(name.endswith("ssm_conv1d.bias") for name in given.tensors),
        "mamba_proj_bias": any(name.endswith("ssm_in.bias") for name in given.tensors),
    }


def _kimi(given: Metadata) -> dict[str, Any]:
    base, choice = latent(given), routed(given)
    layers, groups = base["num_hidden_layers"], choice.pop("n_group")
    heads = given.each("attention.head_count_kv", layers)
    return {
        **base,
        **choice,
        "model_max_length": base.pop("max_position_embeddings"),
        "intermediate_size": given.integer("feed_forward_length"),
        "layer_types": ["full_attention" if count else "linear_attention" for count in heads],
        "mlp_layer_types": dense_then_sparse(given.integer("leading_dense_block_count", 0), layers),
        "linear_head_dim": given.integer("kda.head_dim"),
        "linear_num_heads": base["num_attention_heads"],
        "linear_conv_kernel_dim": given.integer("ssm.conv_kernel"),
        "num_experts": choice.pop("n_routed_experts"),
        "num_experts_per_token": choice.pop("num_experts_per_tok"),
        "num_shared_experts": choice.pop("n_shared_experts"),
        "num_expert_group": groups,
        "moe_renormalize": choice.pop("norm_topk_prob"),
    }


def _period(numbers: list[int], layers: int) -> tuple[int, int]:
    """(first, distance) of layers of a kind."""
    first, second = (*numbers, layers, layers + layers)[:2]
    return first, max(1, second - first)


_MAMBA = {
    "ssm_in": "mamba.in_proj",
    "ssm_conv1d": "mamba.conv1d",
    "ssm_out": "mamba.out_proj",
}
_MIXER = {
    "attn_norm": "norm",
    "attn_q": "mixer.q_proj",
    "attn_k": "mixer.k_proj",
    "attn_v": "mixer.v_proj",
    "attn_output": "mixer.o_proj",
    "ssm_in": "mixer.in_proj",
    "ssm_conv1d": "mixer.conv1d",
    "ssm_dt.bias": "mixer.dt_bias",
    "ssm_out": "mixer.out_proj",
    "ffn_up": "mixer.up_proj",
    "ffn_down": "mixer.down_proj",
    "ffn_gate_inp": "mixer.gate",
    "exp_probs_b.bias": "mixer.gate.e_score_correction_bias",
    "ffn_up_shexp": "mixer.shared_experts.up_proj",
    "ffn_down_shexp": "mixer.shared_experts.down_proj",
    "ffn_latent_down": "mixer.fc1_latent_proj",
    "ffn_latent_up": "mixer.fc2_latent_proj",
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
    "granitehybrid": GgufArchitecture(
        "granitemoehybrid",
        "GraniteMoeHybridForCausalLM",
        _granite,
        GRANITE_EXPERTS,
        {
            **ATTENTION,
            **_MAMBA,
            "ffn_gate_inp": "block_sparse_moe.router",
            "ffn_down_shexp": "shared_mlp.output_linear",
            "ssm_dt.bias": "mamba.dt_bias",
        },
        rotary_permuted=True,
        undo=(
            GRANITE_SHARED,
            Undo("mamba.A_log", "vector-of-decays", ("ssm_a",)),
            Undo("mamba.D", "vector", ("ssm_d",)),
            Undo("mamba.norm.weight", "vector", ("ssm_norm.weight",)),
        ),
        conversions=granite_stack,
    ),
    "nemotron_h_moe": GgufArchitecture(
        "nemotron_h",
        "NemotronHForCausalLM",
        _nemotron,
        ("mixer.experts.{}.gate_proj", "mixer.experts.{}.up_proj", "mixer.experts.{}.down_proj"),
        _MIXER,
        {"token_embd": "model.embeddings", "output_norm": "model.norm_f", "output": "lm_head"},
        undo=(
            Undo("mixer.A_log", "vector-of-decays", ("ssm_a",)),
            Undo("mixer.D", "vector", ("ssm_d",)),
            Undo("mixer.norm.weight", "vector", ("ssm_norm.weight",)),
        ),
    ),
    "kimi-linear": GgufArchitecture(
        "kimi_linear",
        "KimiLinearForCausalLM",
        _kimi,
        ("mlp.experts.{}.w1", "mlp.experts.{}.w3", "mlp.experts.{}.w2"),
        {
            **ATTENTION,
            **LATENT_ATTENTION,
            **ROUTER,
            **MLP,
            **SHARED_EXPERTS,
            **BIAS,
            "ssm_f_a": "self_attn.f_a_proj",
            "ssm_f_b": "self_attn.f_b_proj",
            "ssm_g_a": "self_attn.g_a_proj",
            "ssm_g_b": "self_attn.g_b_proj",
            "ssm_beta": "self_attn.b_proj",
            "ssm_norm": "self_attn.o_norm",
            "ssm_dt.bias": "self_attn.dt_bias",
        },
        undo=(
            SPLIT,
            Undo("self_attn.A_log", "decays-of-heads", ("ssm_a",)),
            Undo("self_attn.q_conv1d.weight", "filters", ("ssm_conv1d_q.weight",)),
            Undo("self_attn.k_conv1d.weight", "filters", ("ssm_conv1d_k.weight",)),
            Undo("self_attn.v_conv1d.weight", "filters", ("ssm_conv1d_v.weight",)),
        ),
    ),
    "jamba": GgufArchitecture(
        "jamba",
        "JambaForCausalLM",
        _jamba,
        ("feed_forward.experts.{}.gate_proj", "feed_forward.experts.{}.up_proj", "feed_forward.experts.{}.down_proj"),
        {
            **ATTENTION,
            **_MAMBA,
            **{theirs: ours.replace("mlp.", "feed_forward.") for theirs, ours in MLP.items()},
            "ffn_norm": "pre_ff_layernorm",
            "ffn_gate_inp": "feed_forward.router",
            "ssm_x": "mamba.x_proj",
            "ssm_dt": "mamba.dt_proj",
            "ssm_dt_norm": "mamba.dt_layernorm",
            "ssm_b_norm": "mamba.b_layernorm",
            "ssm_c_norm": "mamba.c_layernorm",
            "ssm_d": "mamba.D",
        },
        {**OUTSIDE, "output_norm": "model.final_layernorm"},
        undo=(Undo("mamba.A_log", "decay", ("ssm_a",)),),
    ),
}
