"""What llama.cpp calls the parts of each architecture, and what Hugging Face does. A new one is a line in `KNOWN`.

llama.cpp's names: https://github.com/ggml-org/llama.cpp/blob/master/gguf-py/gguf/constants.py; what its conversion
does to tensors: convert_hf_to_gguf.py there. transformers' own reader of GGUF does not know most MoE architectures,
and leaves the experts' sizes of those it does at its defaults (5.23).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from moe_local.errors import CheckpointError, UnsupportedError

T = TypeVar("T", int, float, bool)


@dataclass(frozen=True)
class Metadata:
    """A file's metadata, its architecture's own keys without their prefix."""

    file: Path
    architecture: str
    values: Mapping[str, Any]

    def integer(self, key: str, default: int | None = None) -> int:
        return self._one(key, int, default)

    def number(self, key: str, default: float | None = None) -> float:
        # Written as float32: 1e-06 comes out as 9.999999974752427e-07
        return float(f"{self._one(key, float, default):.7g}")

    def flag(self, key: str, default: bool) -> bool:
        return self._one(key, bool, default)

    def has(self, key: str) -> bool:
        return f"{self.architecture}.{key}" in self.values

    def _one(self, key: str, kind: type[T], default: T | None) -> T:
        full = f"{self.architecture}.{key}"
        value = self.values.get(full, default)
        if type(value) is not kind:
            said = "is missing" if value is None else f"is {value!r}"
            raise CheckpointError(f"{self.file} cannot be understood: its {full} {said}", remedy="download it again")
        return value

    def token(self, name: str) -> int | None:
        value = self.values.get(f"tokenizer.ggml.{name}_token_id")
        return value if type(value) is int else None


@dataclass(frozen=True)
class GgufArchitecture:
    """How a GGUF file of an architecture reads as a Hugging Face checkpoint.

    `config` gives the fields of config.json that are its own; `names` are the parts of a layer; `experts` are
    patterns for the three projections of an expert (gate, up, down).
    """

    model_type: str
    model_class: str
    config: Callable[[Metadata], dict[str, Any]]
    experts: tuple[str, str, str]
    names: Mapping[str, str] = field(default_factory=dict)
    rotary_permuted: bool = False  # rows of q and k: each head's rotary halves interleaved


GLOBAL = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
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
PROJECTIONS = ("mlp.experts.{}.gate_proj", "mlp.experts.{}.up_proj", "mlp.experts.{}.down_proj")
SHARED_EXPERT = {
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}


def decoder_config(given: Metadata) -> dict[str, Any]:
    """The fields that all decoders have."""
    heads = given.integer("attention.head_count")
    theta = given.number("rope.freq_base", 10_000.0)
    ends = [given.token(name) for name in ("eos", "eot", "eom")]
    return {
        "hidden_size": given.integer("embedding_length"),
        "num_hidden_layers": given.integer("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": given.integer("attention.head_count_kv", heads),
        "max_position_embeddings": given.integer("context_length"),
        "rms_norm_eps": given.number("attention.layer_norm_rms_epsilon"),
        "rope_parameters": {"rope_theta": theta, **_rope_scaling(given)},
        "bos_token_id": given.token("bos"),
        "eos_token_id": list(dict.fromkeys(token for token in ends if token is not None)) or None,
        "pad_token_id": given.token("padding"),
    }


def _head_dim(given: Metadata) -> int:
    return given.integer(
        "attention.key_length", given.integer("embedding_length") // max(1, given.integer("attention.head_count"))
    )


def _rope_scaling(given: Metadata) -> dict[str, Any]:
    prefix = f"{given.architecture}.rope.scaling"
    kind = given.values.get(f"{prefix}.type", "none")
    if kind == "none":
        return {"rope_type": "default"}
    if kind not in ("linear", "yarn"):
        raise UnsupportedError(
            f"{given.file} scales positions by {kind!r}, which is not supported for GGUF files",
            remedy="use the model's safetensors repository",
        )
    scaling: dict[str, Any] = {"rope_type": kind, "factor": given.number("rope.scaling.factor")}
    if given.has("rope.scaling.original_context_length"):
        scaling["original_max_position_embeddings"] = given.integer("rope.scaling.original_context_length")
    return scaling


def _qwen3(given: Metadata) -> dict[str, Any]:
    return {
        **decoder_config(given),
        "head_dim": _head_dim(given),
        "intermediate_size": given.integer("feed_forward_length", 0) or given.integer("expert_feed_forward_length"),
        "moe_intermediate_size": given.integer("expert_feed_forward_length"),
        "num_experts": given.integer("expert_count"),
        "num_experts_per_tok": given.integer("expert_used_count"),
        "norm_topk_prob": given.flag("expert_weights_norm", True),  # as llama.cpp does where the file does not say
    }


def _qwen2(given: Metadata) -> dict[str, Any]:
    return {
        **decoder_config(given),
        "intermediate_size": given.integer("feed_forward_length"),
        "moe_intermediate_size": given.integer("expert_feed_forward_length"),
        "shared_expert_intermediate_size": given.integer("expert_shared_feed_forward_length"),
        "num_experts": given.integer("expert_count"),
        "num_experts_per_tok": given.integer("expert_used_count"),
        "norm_topk_prob": given.flag("expert_weights_norm", False),
    }


def _mixtral(given: Metadata) -> dict[str, Any]:
    if not given.has("expert_count"):
        raise UnsupportedError(
            f"{given.file} is a dense model: it has no experts to page", remedy="name a Mixture-of-Experts model"
        )
    return {
        **decoder_config(given),
        "head_dim": _head_dim(given),
        "intermediate_size": given.integer("feed_forward_length"),
        "num_local_experts": given.integer("expert_count"),
        "num_experts_per_tok": given.integer("expert_used_count"),
        "sliding_window": None,
    }


def _olmoe(given: Metadata) -> dict[str, Any]:
    return {
        **decoder_config(given),
        "intermediate_size": given.integer("feed_forward_length"),
        "num_experts": given.integer("expert_count"),
        "num_experts_per_tok": given.integer("expert_used_count"),
        "clip_qkv": given.number("attention.clamp_kqv") if given.has("attention.clamp_kqv") else None,
        "norm_topk_prob": False,
    }


KNOWN: dict[str, GgufArchitecture] = {
    "qwen3moe": GgufArchitecture(
        "qwen3_moe", "Qwen3MoeForCausalLM", _qwen3, PROJECTIONS, {**ATTENTION, **QK_NORMS, **ROUTER}
    ),
    "qwen2moe": GgufArchitecture(
        "qwen2_moe", "Qwen2MoeForCausalLM", _qwen2, PROJECTIONS, {**ATTENTION, **ROUTER, **SHARED_EXPERT}
    ),
    "llama": GgufArchitecture(
        "mixtral",
        "MixtralForCausalLM",
        _mixtral,
        tuple(f"block_sparse_moe.experts.{{}}.{name}" for name in ("w1", "w3", "w2")),  # type: ignore[arg-type]
        {**ATTENTION, "ffn_gate_inp": "block_sparse_moe.gate"},
        rotary_permuted=True,
    ),
    "olmoe": GgufArchitecture("olmoe", "OlmoeForCausalLM", _olmoe, PROJECTIONS, {**ATTENTION, **QK_NORMS, **ROUTER}),
}
