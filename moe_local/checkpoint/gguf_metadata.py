"""A GGUF file's metadata, and what all decoders' configurations have of it.

The keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from moe_local.errors import CheckpointError, UnsupportedError

# Which transformers takes in other forms, or not at all
_UNSUPPORTED_SCALING = ("attn_factor", "yarn_ext_factor", "yarn_attn_factor", "yarn_log_multiplier")

T = TypeVar("T", int, float, bool)


@dataclass(frozen=True)
class Metadata:
    """A file's metadata, its architecture's own keys without their prefix."""

    file: Path
    architecture: str
    values: Mapping[str, Any]
    tensors: frozenset[str]  # the names of all

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


def head_dim(given: Metadata) -> int:
    return given.integer(
        "attention.key_length", given.integer("embedding_length") // max(1, given.integer("attention.head_count"))
    )


def _rope_scaling(given: Metadata) -> dict[str, Any]:
    prefix = f"{given.architecture}.rope.scaling"
    kind = given.values.get(f"{prefix}.type", "none")
    if kind == "none":
        return {"rope_type": "default"}
    special = [name for name in _UNSUPPORTED_SCALING if f"{prefix}.{name}" in given.values]
    if kind not in ("linear", "yarn") or special:
        raise UnsupportedError(
            f"{given.file} scales positions by {' with '.join([repr(kind), *special])}, which is not supported for"
            " GGUF files",
            remedy="use the model's safetensors repository",
        )
    scaling: dict[str, Any] = {"rope_type": kind, "factor": given.number("rope.scaling.factor")}
    if given.has("rope.scaling.original_context_length"):
        scaling["original_max_position_embeddings"] = given.integer("rope.scaling.original_context_length")
    for name in ("beta_fast", "beta_slow"):
        if given.has(f"rope.scaling.yarn_{name}"):
            scaling[name] = given.number(f"rope.scaling.yarn_{name}")
    return scaling
