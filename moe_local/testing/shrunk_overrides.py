"""Sizes of single architectures, where the rule for all in `shrunk_config` does not do."""

from __future__ import annotations

from typing import Any

from moe_local.testing.tokenizer import EOS_ID, PAD_ID

VOCAB_SIZE = 320
NUM_LAYERS = 4


def _mrope(sections: list[int], **more: Any) -> dict[str, Any]:
    """Rotary parameters whose sections (time, height, width) fill half of a rotated head."""
    return {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": sections, **more}


# Where the general rule would build something that cannot run, or no experts at all. By configuration class.
OVERRIDES: dict[str, dict[str, Any]] = {
    "DbrxConfig": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8},
        "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 8, "moe_top_k": 2},
        "n_heads": 4,
        "n_layers": NUM_LAYERS,
        "max_seq_len": 512,
    },
    "DeepseekConfig": {"first_k_dense_replace": 1, "n_shared_experts": 2},
    "DeepseekOcr2TextConfig": {"mlp_layer_types": ["dense", "sparse", "sparse", "sparse"]},
    "DiffusionGemmaTextConfig": {"global_head_dim": 32},
    "Dots1Config": {"n_shared_experts": 1},
    "Dots3NoteTextConfig": {
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 4,
        "swa_q_lora_rank": 24,
        "swa_kv_lora_rank": 32,
        "swa_head_dim": 24,
        "swa_qk_nope_head_dim": 16,
        "swa_v_head_dim": 16,
    },
    "Ernie4_5_VLMoeTextConfig": {"rope_parameters": _mrope([3, 3, 2])},
    "Gemma4TextConfig": {"enable_moe_block": True, "global_head_dim": 32},
    "Glm4vMoeTextConfig": {"rope_parameters": _mrope([2, 1, 1], partial_rotary_factor=0.5)},
    "GraniteMoeHybridConfig": {
        "layer_types": ["linear_attention", "full_attention"] * 2,
        "shared_intermediate_size": 48,
    },
    # So low a cap that it would show if it was forgotten; scales of few digits, as a GGUF file keeps seven.
    "Grok1Config": {
        "max_attn_value": 0.5,
        "attn_output_multiplier": 0.0884,
        "embedding_multiplier_scale": 78.384,
        "output_multiplier_scale": 0.577,
    },
    "HunYuanMoEV1Config": {"head_dim": 16},
    "HYV4VLTextConfig": {"rope_parameters": _mrope([2, 1, 1])},
    "InklingAudioConfig": {"mel_vocab_size": 4},
    "InklingVisionConfig": {"patch_size": 4, "temporal_patch_size": 2},
    "Lfm2MoeConfig": {"layer_types": ["conv", "full_attention"] * 2},
    "JetMoeConfig": {"num_key_value_heads": 2, "kv_channels": 16},
    "LongcatFlashConfig": {
        "num_layers": NUM_LAYERS // 2,
        "ffn_hidden_size": 96,
        "expert_ffn_hidden_size": 32,
        "zero_expert_num": 4,
        "moe_topk": 3,
        "head_dim": 8,
    },
    "Llama4TextConfig": {"intermediate_size": 32, "intermediate_size_mlp": 96, "attention_chunk_size": 8},
    # Tokens are dropped: of a dozen more than three choose the same expert.
    "NllbMoeConfig": {
        "encoder_layers": NUM_LAYERS,
        "decoder_layers": NUM_LAYERS,
        "decoder_attention_heads": 4,
        "decoder_ffn_dim": 64,
        "encoder_sparse_step": 2,
        "decoder_sparse_step": 2,
        "moe_eval_capacity_token_fraction": 0.25,
        "decoder_start_token_id": EOS_ID,
    },
    "SwitchTransformersConfig": {
        "num_layers": NUM_LAYERS,
        "num_decoder_layers": NUM_LAYERS,
        "num_sparse_encoder_layers": 2,
        "num_sparse_decoder_layers": 2,
        "d_ff": 48,
        "d_kv": 16,
        "expert_capacity": 3,
        "decoder_start_token_id": PAD_ID,
    },
    "Llama4VisionConfig": {"vision_output_dim": 64, "projector_input_dim": 64, "projector_output_dim": 64},
    "NemotronHConfig": {"layer_types": ["linear_attention", "moe", "full_attention", "moe", "mlp", "moe"]},
    "Qwen3OmniMoeTalkerConfig": {"spatial_merge_size": 2, "thinker_hidden_size": 64},
    "Qwen3OmniMoeTalkerTextConfig": {"shared_expert_intermediate_size": 48},
    "Qwen3OmniMoeThinkerConfig": {"vision_start_token_id": VOCAB_SIZE - 1},
    "Qwen4ExpTextConfig": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
        "ple_layer_ids": [1],
        "ple_embed_dim": 64,
        "heads_per_ngram": 2,
        "ngram_vocab_size_base": 64,
        "make_ngram_vocab_size_divisible_by": 8,
        "split_ngram_parts": 2,
    },
    "Step3p7TextConfig": {
        "share_expert_dim": 48,
        "sliding_window": 8,
        "layer_types": ["full_attention", "sliding_attention"] * 2,
        "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
        "swiglu_limits": [0.0, 0.0, 0.5, 7.0],
    },
    "ZayaConfig": {"num_experts_per_tok": 1},
}
