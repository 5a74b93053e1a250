"""Tiny GGUF files, written as llama.cpp's conversion writes them, and the model that each stands for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from transformers import PreTrainedModel

from moe_local.testing.architectures import Architecture
from moe_local.testing.gguf_metadata import GEMMA_HEAD, metadata
from moe_local.testing.gguf_tensors import gguf_tensors
from moe_local.testing.shrunk_config import VOCAB_SIZE, tiny_config
from moe_local.testing.shrunk_overrides import OVERRIDES as SHRUNK
from moe_local.testing.tiny import randomize_
from moe_local.testing.tokenizer import (
    BOS_ID,
    CHAT_TEMPLATE,
    EOS_ID,
    MERGES,
    PAD_ID,
    SPECIAL_TOKENS,
    TOKENIZER_SIZE,
    tiny_tokenizer,
)

NAMES = {
    "qwen3_moe": "qwen3moe",
    "qwen2_moe": "qwen2moe",
    "mixtral": "llama",
    "olmoe": "olmoe",
    "gpt_oss": "gpt-oss",
    "glm4_moe": "glm4moe",
    "lfm2_moe": "lfm2moe",
    "granitemoe": "granitemoe",
    "qwen3_next": "qwen3next",
    "qwen3_5_moe": "qwen35moe",
    "minimax_m2": "minimax-m2",
    "phimoe": "phimoe",
    "hunyuan_v1_moe": "hunyuan-moe",
    "dots1": "dots1",
    "ernie4_5_moe": "ernie4_5-moe",
    "hy_v3": "hy_v3",
    "deepseek_v2": "deepseek2",
    "deepseek_v3": "deepseek2",
    "mistral4": "mistral4",
    "deepseek_v32": "deepseek32",
    "glm_moe_dsa": "glm-dsa",
    "exaone_moe": "exaone-moe",
    "afmoe": "afmoe",
    "mellum": "mellum",
    "gemma4": "gemma4",
    "granitemoehybrid": "granitehybrid",
    "nemotron_h": "nemotron_h_moe",
    "jamba": "jamba",
    "kimi_linear": "kimi-linear",
    "granitemoeshared": "granitemoe",
    "deepseek": "deepseek",
    "grok": "grok",
    "dbrx": "dbrx",
    "llama4": "llama4",
}
ALIKE = {"glm4_moe_lite": "deepseek2", "solar_open": "glm4moe"}  # read as another class that calculates the same
# What llama.cpp demands of some
_SLIDING = ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"]
INDEXER = {"index_head_dim": 64, "index_n_heads": 32}  # of few heads, many tokens have the same score: 0
OVERRIDES: dict[str, dict[str, Any]] = {
    "exaone_moe": {"layer_types": _SLIDING, "sliding_window": 8},
    "afmoe": {"layer_types": _SLIDING, "sliding_window": 8, "mup_enabled": True},
    "mellum": {"layer_types": _SLIDING, "sliding_window": 8},
    "gemma4": {
        "layer_types": _SLIDING,
        "sliding_window": 8,
        "tie_word_embeddings": True,
        "global_head_dim": GEMMA_HEAD,
        "final_logit_softcapping": 30.0,
    },
    "granitemoeshared": {"shared_intermediate_size": 48},
    "kimi_linear": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "nemotron_h": {"layers_block_type": ["linear_attention", "moe", "full_attention", "moe"]},
    "minimax_m2": {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default", "partial_rotary_factor": 0.5}},
    "deepseek_v32": {**INDEXER},
    "glm_moe_dsa": {**INDEXER, "indexer_types": ["full", "shared", "full", "shared"]},
    "phimoe": {"lm_head_bias": True, "attention_bias": True},
    "grok": {"tie_word_embeddings": True},
    "llama4": {"interleave_moe_layer_step": 2, "moe_layers": [1, 3], "attention_chunk_size": 8192},
}

DBRX = SHRUNK["DbrxConfig"]
# Where the blocks of a type have their float16 scales: byte offsets. The rest may be anything.
SCALES = {
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "IQ1_S": (0,),
    "IQ2_XXS": (0,),
    "IQ2_XS": (0,),
    "IQ2_S": (0,),
    "IQ3_XXS": (0,),
    "IQ3_S": (0,),
    "IQ4_XS": (0,),
    "IQ4_NL": (0,),
}


def write_tiny_gguf(
    architecture: Architecture,
    file: Path,
    quantization: str,
    *,
    seed: int = 0,
    parts: int = 1,
    fused: bool = False,
    splitting: str = "gpt-2",
    extra_layer: bool = True,
) -> PreTrainedModel:
    """Writes a model of random weights; matrices in `quantization`, all else in F32.

    Several `parts` get names made of `file`'s. `fused` experts have gate and up in one tensor. `splitting` is what
    the file calls its tokenizer's rule. GLM has an `extra_layer`: a stump of what predicts several tokens at once.
    Returns the float32 model that has the very numbers of the file.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    name = (NAMES | ALIKE)[architecture.name]
    kind = GGMLQuantizationType[quantization]
    model = _model(architecture, gguf.GGML_QUANT_SIZES[kind][0], seed)
    tensors = gguf_tensors(model, name, fused=fused)
    most = -(-len(tensors) // parts) if parts > 1 else 0
    writer = GGUFWriter(file, name, split_max_tensors=most)
    extra = int(extra_layer and architecture.name == "glm4_moe")
    for key, value in metadata(model.config, name, extra).items():
        _add(writer, f"{name}.{key}", value)
    _write_tokenizer(writer, splitting)
    encode, elements = _encoder(kind, np.random.default_rng(seed)), gguf.GGML_QUANT_SIZES[kind][0]
    for tensor in tensors:
        if not tensor.quantisable or tensor.numbers.shape[-1] % elements:
            writer.add_tensor(tensor.name, np.ascontiguousarray(tensor.numbers.numpy()))
        else:
            data = encode(np.ascontiguousarray(tensor.numbers.numpy()))
            writer.add_tensor(tensor.name, data, raw_dtype=kind)
            tensor.put_back(torch.from_numpy(gguf.quants.dequantize(data, kind).copy()))
    if extra:
        # What predicts several tokens at once, which nobody here runs
        writer.add_tensor(f"blk.{model.config.num_hidden_layers}.nextn.enorm.weight", np.zeros(8, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, list):
        writer.add_array(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    else:
        writer.add_float32(key, value)


def _model(architecture: Architecture, block: int, seed: int) -> PreTrainedModel:
    """A tiny model whose rows are whole blocks."""
    tiny = tiny_config(architecture)
    given = tiny.to_dict()
    given.pop("per_layer_config", None)
    width = max(block, 64)
    # The rest as llama.cpp has it, whatever a configuration says
    wanted = {
        **dict.fromkeys(("hidden_size", "intermediate_size", "shared_expert_intermediate_size", "d_model"), width),
        "attn_config": DBRX["attn_config"],
        "ffn_config": DBRX["ffn_config"] | {"ffn_hidden_size": width},
        "moe_intermediate_size": max(block, 32),
        "mamba_d_head": 2 * width // given.get("mamba_n_heads", 1),
        "head_dim": given.get("head_dim") if "qk_rope_head_dim" in given else width // tiny.num_attention_heads,
        "tie_word_embeddings": architecture.name == "lfm2_moe",
        "norm_topk_prob": architecture.name not in ("qwen2_moe", "olmoe", "deepseek", "deepseek_v2"),
        "sliding_window": given.get("sliding_window") if architecture.name == "gpt_oss" else None,
        "use_sliding_window": False,
        # Granite's, as in its published checkpoints: none of them one
        "embedding_multiplier": 12.0,
        "residual_multiplier": 0.22,
        "attention_multiplier": 0.015625,
        "logits_scaling": 6.0,
        "layer_types": given.get("layer_types") if architecture.name == "lfm2_moe" else None,
    }
    own = OVERRIDES.get(architecture.name, {})
    config = architecture.config_class(**given | {name: wanted[name] for name in wanted.keys() & given.keys()} | own)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = architecture.model_class._from_config(config, dtype=torch.float32)
    model.set_experts_implementation("eager")
    randomize_(model, torch.Generator().manual_seed(seed))
    return model.eval()


def _encoder(kind: GGMLQuantizationType, random: np.random.Generator) -> Callable[[Any], Any]:
    """Quantises, or where the package cannot, makes up blocks of about the same size of numbers."""
    if kind.name == "NVFP4":
        return lambda weight: _nvfp4(weight, random)
    if kind.name == "IQ1_M":
        return lambda weight: _iq1_m(weight, random)
    if kind.name not in SCALES:
        return lambda weight: gguf.quants.quantize(weight, kind)

    def made_up(weight: Any) -> Any:
        elements, size = gguf.GGML_QUANT_SIZES[kind]
        blocks = random.integers(0, 256, (*weight.shape[:-1], weight.shape[-1] // elements, size), dtype=np.uint8)
        for at in SCALES[kind.name]:
            scales = random.uniform(0.5, 1.0, blocks.shape[:-1]).astype(np.float16)
            blocks[..., at : at + 2] = scales[..., None].view(np.uint8)
        spread = np.std(gguf.quants.dequantize(blocks.reshape(-1, size), kind))
        for at in SCALES[kind.name]:
            scales = blocks[..., at : at + 2].copy().view(np.float16) * (np.std(weight) / spread)
            blocks[..., at : at + 2] = scales.astype(np.float16).view(np.uint8)
        return blocks.reshape(*weight.shape[:-1], -1)

    return made_up


def _iq1_m(weight: Any, random: np.random.Generator) -> Any:
    """Blocks whose float16 scale lies in the highest bits of four numbers."""
    kind = GGMLQuantizationType.IQ1_M
    blocks = random.integers(0, 256, (*weight.shape[:-1], weight.shape[-1] // 256, 56), dtype=np.uint8)
    scales = blocks[..., 48:].view(np.uint16)

    def set_scale(scale: float) -> None:
        bits = int(np.float16(scale).view(np.uint16))
        for place in range(4):
            scales[..., place] = scales[..., place] & 0x0FFF | (bits >> 4 * place & 15) << 12

    set_scale(1)
    set_scale(np.std(weight) / np.std(gguf.quants.dequantize(blocks.reshape(-1, 56), kind)))
    return blocks.reshape(*weight.shape[:-1], -1)


def _nvfp4(weight: Any, random: np.random.Generator) -> Any:
    """Blocks of four scales of 8 bits, no sign and 4 bits of exponent: of about the same size of numbers."""
    kind = GGMLQuantizationType.NVFP4
    blocks = random.integers(0, 256, (*weight.shape[:-1], weight.shape[-1] // 64, 36), dtype=np.uint8)

    def with_scale(exponent: int) -> Any:
        blocks[..., :4] = exponent << 3 | random.integers(0, 8, blocks[..., :4].shape, dtype=np.uint8)
        return gguf.quants.dequantize(blocks.reshape(-1, 36), kind)

    nearest = min(range(15), key=lambda exponent: abs(np.std(with_scale(exponent)) - np.std(weight)))
    with_scale(nearest)
    return blocks.reshape(*weight.shape[:-1], -1)


def _write_tokenizer(writer: GGUFWriter, splitting: str) -> None:
    vocabulary = tiny_tokenizer().get_vocab()
    tokens = sorted(vocabulary, key=lambda token: vocabulary[token])
    unused = [f"[PAD{number}]" for number in range(TOKENIZER_SIZE, VOCAB_SIZE)]
    kinds = [gguf.TokenType.CONTROL if token in SPECIAL_TOKENS else gguf.TokenType.NORMAL for token in tokens]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(splitting)
    writer.add_token_list(tokens + unused)
    writer.add_token_types(kinds + [gguf.TokenType.UNUSED] * len(unused))
    writer.add_token_merges([f"{left} {right}" for left, right in MERGES])
    writer.add_bos_token_id(BOS_ID)
    writer.add_eos_token_id(EOS_ID)
    writer.add_pad_token_id(PAD_ID)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)
