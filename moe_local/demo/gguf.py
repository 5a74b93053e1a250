"""The dense model from a GGUF file: tensors and tokenizer as a Llama checkpoint has them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from moe_local.checkpoint.gguf_architecture import ATTENTION, MLP
from moe_local.demo.dense import DenseModel, Report, tokenizer_files
from moe_local.errors import CheckpointError

CONTROL_TOKEN = 3  # GGUF's token type for special tokens
GGUF_NAMES = {**ATTENTION, **MLP}


def read_gguf(path: Path, report: Report, origin: str) -> DenseModel:
    """A Llama GGUF as a `DenseModel` of that origin, with float32 tensors.

    Raises `CheckpointError` for another architecture.
    """
    from gguf import GGUFReader

    reader = GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    if fields.get("general.architecture") != "llama":
        raise CheckpointError(f"{path}: a GGUF of a Llama model was expected, not {fields['general.architecture']!r}")
    config = gguf_config(fields)
    tensors = {}
    for done, tensor in enumerate(reader.tensors):
        tensors[llama_name(tensor.name)] = read_gguf_tensor(tensor, config)
        report("reading the model", (done + 1) / len(reader.tensors))
    return DenseModel(config, tensors, gguf_tokenizer(fields), origin)


def gguf_config(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A Llama config's fields from a GGUF's metadata."""
    return {
        "vocab_size": len(fields["tokenizer.ggml.tokens"]),
        "hidden_size": fields["llama.embedding_length"],
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": fields["llama.attention.head_count"],
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "max_position_embeddings": fields["llama.context_length"],
        "rms_norm_eps": round(fields["llama.attention.layer_norm_rms_epsilon"], 9),
        "rope_theta": fields["llama.rope.freq_base"],
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "pad_token_id": fields["tokenizer.ggml.padding_token_id"],
        "tie_word_embeddings": True,
    }


def llama_name(gguf_name: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`."""
    if gguf_name == "token_embd.weight":
        return "model.embed_tokens.weight"
    if gguf_name == "output_norm.weight":
        return "model.norm.weight"
    _, layer, part, _ = gguf_name.split(".")
    return f"model.layers.{layer}.{GGUF_NAMES[part]}.weight"


def read_gguf_tensor(tensor: Any, config: Mapping[str, Any]) -> torch.Tensor:
    """One tensor, dequantised to float32, its rows in the order a Llama checkpoint has them."""
    from gguf.quants import dequantize

    weight = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy()).float()
    if ".attn_q." in tensor.name:
        return unpermute(weight, config["num_attention_heads"])
    if ".attn_k." in tensor.name:
        return unpermute(weight, config["num_key_value_heads"])
    return weight


def unpermute(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Undoes GGUF's rotary layout: it keeps the two halves of a head interleaved, Llama checkpoints side by
    side.

    `weight` is `[heads * head_dim, in]`.
    """
    rows, columns = weight.shape
    interleaved = weight.view(heads, rows // heads // 2, 2, columns)  # [heads, head_dim / 2, 2, in]
    return interleaved.transpose(1, 2).reshape(rows, columns).contiguous()


def gguf_tokenizer(fields: Mapping[str, Any]) -> dict[str, str]:
    """The tokenizer's files from a GGUF's metadata: byte-level BPE, digits one by one ("smollm")."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = fields["tokenizer.ggml.token_type"]
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    named = {
        f"{short}_token": tokens[fields[f"tokenizer.ggml.{long}_token_id"]]
        for short, long in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
    }
    files = {"tokenizer.json": tokenizer.to_str(pretty=False)}
    return files | tokenizer_files(fields["tokenizer.chat_template"], **named)
