"""Tiny GGUF files, written as llama.cpp's conversion writes them, and the model that each stands for."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from moe_local.testing.architectures import Architecture
from moe_local.testing.shrunk_config import VOCAB_SIZE, tiny_config
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
}
PERMUTED = {"llama", "granitemoe"}  # architectures whose conversion interleaves the rotary halves of q and k
EXPERTS_FEED_FORWARD = {"qwen3moe", "qwen2moe", "glm4moe", "lfm2moe"}  # which tell the experts' width apart

# Where the blocks of a type have their float16 scales: byte offsets. The rest may be anything.
SCALES = {
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
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
    kind = GGMLQuantizationType[quantization]
    model = _model(architecture, gguf.GGML_QUANT_SIZES[kind][0], seed)
    tensors = _tensors(model, NAMES[architecture.name], fused=fused)
    most = -(-len(tensors) // parts) if parts > 1 else 0
    writer = GGUFWriter(file, NAMES[architecture.name], split_max_tensors=most)
    extra = int(extra_layer and architecture.name == "glm4_moe")
    _write_metadata(writer, model.config, NAMES[architecture.name], extra)
    _write_tokenizer(writer, splitting)
    encode = _encoder(kind, np.random.default_rng(seed))
    for name, tensor, put_back in tensors:
        if tensor.ndim < 2 or "ffn_gate_inp" in name or "shortconv.conv" in name or name.endswith("bias"):
            writer.add_tensor(name, np.ascontiguousarray(tensor.numpy()))
        else:
            data = encode(tensor.numpy())
            writer.add_tensor(name, data, raw_dtype=kind)
            put_back(torch.from_numpy(gguf.quants.dequantize(data, kind).copy()).view(tensor.shape))
    if extra:
        # What predicts several tokens at once, which nobody here runs
        writer.add_tensor(f"blk.{model.config.num_hidden_layers}.nextn.enorm.weight", np.zeros(8, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def _model(architecture: Architecture, block: int, seed: int) -> PreTrainedModel:
    """A tiny model whose rows are whole blocks."""
    given = tiny_config(architecture).to_dict()
    width = max(block, 64)
    # The rest as llama.cpp has it, whatever a configuration says
    wanted = {
        **dict.fromkeys(("hidden_size", "intermediate_size", "shared_expert_intermediate_size"), width),
        "moe_intermediate_size": max(block, 32),
        "head_dim": width // given["num_attention_heads"],
        "tie_word_embeddings": architecture.name == "lfm2_moe",
        "norm_topk_prob": architecture.name in ("qwen3_moe", "glm4_moe", "lfm2_moe"),
        "sliding_window": given.get("sliding_window") if architecture.name == "gpt_oss" else None,
        "use_sliding_window": False,
        # Granite's, as in its published checkpoints: none of them one
        "embedding_multiplier": 12.0,
        "residual_multiplier": 0.22,
        "attention_multiplier": 0.015625,
        "logits_scaling": 6.0,
        "layer_types": given.get("layer_types") if architecture.name == "lfm2_moe" else None,
    }
    config = architecture.config_class(**given | {name: wanted[name] for name in wanted.keys() & given.keys()})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = architecture.model_class._from_config(config, dtype=torch.float32)
    model.set_experts_implementation("eager")
    randomize_(model, torch.Generator().manual_seed(seed))
    return model.eval()


def _encoder(kind: GGMLQuantizationType, random: np.random.Generator) -> Callable[[Any], Any]:
    """Quantises, or where the package cannot, makes up blocks of about the same size of numbers."""
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


def _tensors(
    model: PreTrainedModel, name: str, *, fused: bool
) -> list[tuple[str, Tensor, Callable[[Tensor], object]]]:
    """(GGUF name, tensor, what puts other numbers into the model in its place) of each."""
    mapping = gguf.get_tensor_name_map(
        next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == name), model.config.num_hidden_layers
    )
    found: list[tuple[str, Tensor, Callable[[Tensor], object]]] = []
    for path, tensor in model.state_dict().items():
        if path == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        if ".experts." in path:
            pieces = _expert_pieces(path.rpartition(".")[2], tensor, alternate=name == "gpt-oss", fused=fused)
            found += [(f"blk.{path.split('.')[2]}.{piece}", t, t.copy_) for piece, t in pieces.items()]
            continue
        base, _, kind = re.sub(r"(correction|expert)_bias$", r"\1_bias.bias", path).rpartition(".")
        base = base.replace("correction_bias", "correction").replace("_moe.router", "_moe.router.layer")
        if kind == "sinks":
            base, kind = path, "weight"
        target = mapping.get_name(base)
        assert target is not None, f"no name for {path}"
        put_back = tensor.copy_
        heads = {"attn_q": model.config.num_attention_heads, "attn_k": model.config.num_key_value_heads}
        part = target.rpartition(".")[2]
        if name in PERMUTED and part in heads:
            found.append((f"{target}.{kind}", *_permuted(tensor, heads[part])))
        else:
            squeezed = "shexp" in target or "shortconv.conv" in target
            found.append((f"{target}.{kind}", tensor.squeeze() if squeezed else tensor, put_back))
    return found


def _expert_pieces(kind: str, tensor: Tensor, *, alternate: bool, fused: bool) -> dict[str, Tensor]:
    """Views of a parameter of all experts, by what a GGUF has of it."""
    suffix = "bias" if kind.endswith("_bias") else "weight"
    whole = tensor.transpose(1, 2) if alternate and tensor.ndim == 3 else tensor  # [experts, out(, in)]
    inner = whole.shape[1] // 2
    if kind.startswith("down"):
        return {f"ffn_down_exps.{suffix}": whole}
    if fused:
        return {f"ffn_gate_up_exps.{suffix}": whole}
    gate, up = (whole[:, ::2], whole[:, 1::2]) if alternate else (whole[:, :inner], whole[:, inner:])
    return {f"ffn_gate_exps.{suffix}": gate, f"ffn_up_exps.{suffix}": up}


def _permuted(weight: Tensor, heads: int) -> tuple[Tensor, Callable[[Tensor], None]]:
    """`LlamaModel.permute` of convert_hf_to_gguf.py."""
    split = (heads, 2, weight.shape[0] // heads // 2, weight.shape[1])
    permuted = weight.view(split).transpose(1, 2).reshape(weight.shape)

    def put_back(numbers: Tensor) -> None:
        weight.copy_(numbers.view(heads, split[2], 2, split[3]).transpose(1, 2).reshape(weight.shape))

    return permuted, put_back


def _write_metadata(writer: GGUFWriter, config: PreTrainedConfig, name: str, extra: int) -> None:
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers + extra)
    writer.add_head_count(config.num_attention_heads)
    kv_heads = config.num_key_value_heads
    if name == "lfm2moe":
        writer.add_head_count_kv([kv_heads if kind == "full_attention" else 0 for kind in config.layer_types])
    else:
        writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config.norm_eps if name == "lfm2moe" else config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_expert_count(getattr(config, "num_experts", None) or config.num_local_experts)
    if name == "gpt-oss":
        writer.add_sliding_window(config.sliding_window)
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(config.rope_parameters["factor"])
        writer.add_rope_scaling_orig_ctx_len(config.rope_parameters["original_max_position_embeddings"])
        writer.add_expert_feed_forward_length(config.intermediate_size)
    if name == "granitemoe":
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_attention_scale(config.attention_multiplier)
        writer.add_logit_scale(config.logits_scaling)
    if name == "lfm2moe":
        writer.add_shortconv_l_cache(config.conv_L_cache)
        writer.add_leading_dense_block_count(config.num_dense_layers)
        writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
        writer.add_vocab_size(config.vocab_size)
    if name == "glm4moe":
        writer.add_nextn_predict_layers(extra)
        writer.add_rope_dimension_count(int(head_dim * config.rope_parameters["partial_rotary_factor"]))
        writer.add_expert_shared_count(config.n_shared_experts)
        writer.add_leading_dense_block_count(config.first_k_dense_replace)
        writer.add_expert_weights_scale(config.routed_scaling_factor)
        writer.add_expert_weights_norm(config.norm_topk_prob)
    writer.add_expert_used_count(config.num_experts_per_tok)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    if name in EXPERTS_FEED_FORWARD:
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    if hasattr(config, "shared_expert_intermediate_size"):
        writer.add_expert_shared_feed_forward_length(config.shared_expert_intermediate_size)


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
