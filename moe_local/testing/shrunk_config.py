"""Configurations of every MoE architecture, shrunk: sizes by field, and where the general rule does not do."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

from transformers import PreTrainedConfig

from moe_local.testing.architectures import Architecture
from moe_local.testing.shrunk_overrides import NUM_LAYERS, OVERRIDES
from moe_local.testing.shrunk_overrides import VOCAB_SIZE as VOCAB_SIZE
from moe_local.testing.tokenizer import BOS_ID, EOS_ID, PAD_ID, TOKENIZER_SIZE

NUM_EXPERTS = 8

# Every configuration field that sets a size, by name, whichever architecture it belongs to. A field that an
# architecture leaves unset (None) stays so: it is derived from others or switches a part off.
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "vocab_size_per_layer_input": VOCAB_SIZE,
    "unpadded_vocab_size": VOCAB_SIZE - 8,
    "hidden_size": 64,
    "hidden_size_per_layer_input": 8,
    "intermediate_size": 96,
    "dense_intermediate_size": 96,
    "prefix_dense_intermediate_size": 96,
    "num_hidden_layers": NUM_LAYERS,
    "max_position_embeddings": 512,
    "sliding_window": 8,
    "sliding_window_size": 8,
    "num_attention_heads": 4,
    "head_dim": 16,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 2,
    "swa_head_dim": 16,
    # Experts
    "num_experts": NUM_EXPERTS,
    "num_local_experts": NUM_EXPERTS,
    "n_routed_experts": NUM_EXPERTS,
    "moe_num_experts": NUM_EXPERTS,
    "num_experts_per_tok": 2,
    "top_k_experts": 2,
    "num_experts_per_token": 2,
    "moe_topk": 2,
    "moe_k": 2,
    "moe_intermediate_size": 32,
    "moe_hidden_size": 32,
    "n_group": 1,
    "topk_group": 1,
    "num_expert_group": 1,
    "first_k_dense_replace": 1,
    "num_dense_layers": 1,
    "n_shared_experts": 1,
    "num_shared_experts": 1,
    "moe_num_shared_experts": 1,
    "shared_intermediate_size": 48,
    "shared_expert_intermediate_size": 48,
    "shared_experts_intermediate_size": 48,
    "moe_shared_expert_intermediate_size": 48,
    "router_hidden_size": 16,
    # Latent attention, indexers, compressors
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "o_groups": 2,
    "o_lora_rank": 16,
    "index_n_heads": 2,
    "index_head_dim": 16,
    "index_topk": 8,
    "index_block_size": 4,
    "index_topk_blocks": 4,
    "index_kpool": 2,
    "rotary_dim": 8,
    "hc_lowrank": 8,
    "gated_norm_rank": 8,
    "d_rel": 4,
    "rel_extent": 16,
    # Linear attention and state spaces
    "linear_head_dim": 16,
    "linear_num_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "block_size": 4,
    "chunk_size": 8,
    "mamba_chunk_size": 8,
    "mamba_d_state": 8,
    "ssm_state_size": 8,
    "mamba_d_head": 16,
    "mamba_head_dim": 16,
    "mamba_n_heads": 8,
    "mamba_num_heads": 8,
    "mamba_n_groups": 1,
    "n_groups": 2,
    "mamba_dt_rank": 4,
    "canvas_length": 12,
    "attn_layer_period": 2,
    "attn_layer_offset": 1,
    # Images and sounds: built and saved, never run
    "depth": 2,
    "num_heads": 4,
    "image_size": 32,
    "patch_size": 8,
    "num_position_embeddings": 16,
    "position_embedding_size": 64,
    "hidden_sizes": [16, 16, 16, 16],
    "downsample_channels": [16, 64],
    "out_hidden_size": 64,
    "text_hidden_size": 64,
    "projector_hidden_size": 64,
    "projection_hidden_dim": 64,
    "projection_intermediate_size": 64,
    "merged_hidden_size": 256,
    "output_channels": 16,
    "mlp_dim": 64,
    "d_model": 64,
    "encoder_layers": 2,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "downsample_hidden_size": 16,
    "output_dim": 64,
    "adapter_in_dim": 64,
    "adapter_input_size": 64,
    "adapter_out_dim": 64,
    "num_code_groups": 4,
}

# Lists of one entry per layer whose entries choose what the layer is made of.
LAYER_KINDS = ("layer_types", "mlp_layer_types")

TOKEN_IDS = {"pad_token_id": PAD_ID, "bos_token_id": BOS_ID, "eos_token_id": EOS_ID}

# Counts that some architectures leave unset by default, whatever their published checkpoints say.
EXPERT_SIZES = (
    "num_experts",
    "n_routed_experts",
    "num_experts_per_tok",
    "top_k_experts",
    "moe_intermediate_size",
)


def tiny_config(architecture: Architecture) -> PreTrainedConfig:
    """The architecture's configuration with every size shrunk: at least two MoE layers, eight experts each.

    Sub-configurations (text, vision, audio) shrink with it; special token ids fall inside the vocabulary.
    """
    return _shrunk(architecture.config_class)


def _shrunk(config_class: type[PreTrainedConfig]) -> PreTrainedConfig:
    fields = _default_fields(config_class)
    parts = {name: value for name, value in fields.items() if isinstance(value, PreTrainedConfig)}
    # As JSON has them: not every configuration takes its parts as objects.
    arguments: dict[str, Any] = {name: _shrunk(type(part)).to_dict() for name, part in parts.items()}
    arguments |= _sizes(fields) | _layer_kinds(fields) | _token_ids(fields)
    return config_class(**arguments | OVERRIDES.get(config_class.__name__, {}))


def _default_fields(config_class: type[PreTrainedConfig]) -> dict[str, Any]:
    # Not getattr: it refuses a field that may differ from layer to layer.
    stored, aliases = vars(config_class()), config_class.attribute_map
    names = [field.name for field in dataclasses.fields(config_class)]
    return {name: stored.get(aliases.get(name, name)) for name in names}


def _sizes(fields: dict[str, Any]) -> dict[str, Any]:
    sizes = {name: _like(fields[name], SIZES[name]) for name in fields.keys() & SIZES.keys()}
    sizes |= {name: SIZES[name] for name in EXPERT_SIZES if name in fields and fields[name] is None}
    if "num_key_value_heads" in fields:
        sizes["num_key_value_heads"] = _key_value_heads(fields)
    if "qk_rope_head_dim" in fields:
        sizes.pop("head_dim", None)  # latent attention derives it
    return {name: value for name, value in sizes.items() if value is not None}


def _like(full_size: Any, tiny: Any) -> Any:
    if isinstance(tiny, list):
        return tiny if full_size else full_size
    if isinstance(full_size, list | tuple):
        # A size for each of several kinds of experts: keep them different.
        return [tiny >> position for position in range(len(full_size))]
    # Unset or zero: derived from other fields, or a part that is switched off.
    return tiny if full_size else full_size


def _key_value_heads(fields: dict[str, Any]) -> int | None:
    """Multi-query stays multi-query, grouped stays grouped, one for each head stays so."""
    full_size, heads = fields["num_key_value_heads"], fields.get("num_attention_heads")
    if full_size is None or full_size == 1:
        return cast("int | None", full_size)
    return 4 if full_size == heads else 2


def _layer_kinds(fields: dict[str, Any]) -> dict[str, list[str]]:
    kinds = {}
    for name in LAYER_KINDS:
        if fields.get(name):
            distinct = list(dict.fromkeys(fields[name]))
            # Attention kinds take turns; the leading kinds of MLP come once and the last one is the MoE.
            filler = distinct if name == "layer_types" else distinct[-1:]
            kinds[name] = (distinct + filler * NUM_LAYERS)[:NUM_LAYERS]
    return kinds


def _token_ids(fields: dict[str, Any]) -> dict[str, int]:
    """The text's special ids as the tokenizer has them; each other one its own id beyond the tokenizer's."""
    special = [name for name in fields if name.endswith(("_token_id", "_token_index"))]
    others = [name for name in special if name not in TOKEN_IDS and fields[name] is not None]
    known = {name: TOKEN_IDS[name] for name in TOKEN_IDS if name in fields}
    return known | {name: TOKENIZER_SIZE + position for position, name in enumerate(others)}
