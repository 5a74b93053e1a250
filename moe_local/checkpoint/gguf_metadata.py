"""A GGUF file's metadata, and what all decoders' configurations have of it.

The keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from moe_local.checkpoint.gguf_header import GgufTensor
from moe_local.errors import CheckpointError, UnsupportedError

# Which transformers takes in other forms, or not at all
_UNSUPPORTED_SCALING = ("attn_factor", "yarn_ext_factor", "yarn_attn_factor")

_MAY_BE_NONE = (
    "expert_count", "expert_shared_count", "expert_shared_feed_forward_length", "feed_forward_length",
    "leading_dense_block_count", "nextn_predict_layers", "attention.shared_kv_layers",
    "embedding_length_per_layer_input",
)  # fmt: skip
_MOST = 1 << 40  # of any count
_MOST_LAYERS = 1 << 12
ROPE_FREQS, ROPE_LONG, ROPE_SHORT = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"
ROPE_FACTORS = (ROPE_FREQS, ROPE_LONG, ROPE_SHORT)

T = TypeVar("T", int, float, bool)

_NO_TOKEN = (1 << 31) - 1  # from here on: -1, as some write that there is none


@dataclass(frozen=True)
class Metadata:
    """A file's metadata, its architecture's own keys without their prefix."""

    file: Path
    architecture: str
    values: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]
    rope_factors: Mapping[str, tuple[float, ...]] = field(default_factory=dict)  # of tensors that divide frequencies

    def integer(self, key: str, default: int | None = None) -> int:
        """A count: at least 1, where none of it would make no model."""
        value = self._one(key, int, default)
        if not (0 if key in _MAY_BE_NONE else 1) <= value <= _MOST:
            raise self._strange(key, f"is {value}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        # Written as float32: 1e-06 comes out as 9.999999974752427e-07
        return float(f"{self._one(key, float, default):.7g}")

    def flag(self, key: str, default: bool) -> bool:
        return self._one(key, bool, default)

    def has(self, key: str) -> bool:
        return f"{self.architecture}.{key}" in self.values

    def most(self, key: str, default: int | None = None) -> int:
        """The largest of a list of one count for each layer, some of which may be 0; or the count of all."""
        return self.integer(key, default) if self.listed(key) is None else max(self.each(key, 0))

    def each(self, key: str, layers: int) -> list[int]:
        """A list of one count for each layer; or the same for all `layers`."""
        given = self.listed(key)
        if given is None:
            return [self.integer(key)] * layers
        counts = [count for value in given if (count := _as(int, value)) is not None and 0 <= count <= _MOST]
        if len(counts) != len(given) or len(given) < layers or not any(counts):
            raise self._strange(key, f"is {given!r}")
        return counts

    def listed(self, key: str) -> list[Any] | None:
        """A list, of one value for each layer; None where there is none."""
        given = self.values.get(f"{self.architecture}.{key}")
        return given if isinstance(given, list) else None

    def _one(self, key: str, kind: type[T], default: T | None) -> T:
        full = f"{self.architecture}.{key}"
        value = _as(kind, self.values.get(full, default))
        if value is None:
            value = self.values.get(full)
            raise self._strange(key, "is missing" if value is None else f"is {value!r}")
        return value

    def _strange(self, key: str, said: str) -> CheckpointError:
        return CheckpointError(
            f"{self.file} cannot be understood: its {self.architecture}.{key} {said}", remedy="download it again"
        )

    def token(self, name: str) -> int | None:
        found = _as(int, self.values.get(f"tokenizer.ggml.{name}_token_id"))
        return found if found is not None and 0 <= found < _NO_TOKEN else None

    def expert_width(self, key: str = "expert_feed_forward_length") -> int:
        """The inner width of an expert; where the file does not say, that of its tensors."""
        return self.integer(key, self._last_axis(r"blk\.\d+\.ffn_down(_exps|\.\d+)\.weight"))

    def shared_width(self) -> int:
        """The same of the expert that serves every token."""
        found = self._last_axis(r"blk\.\d+\.ffn_down_shexp\.weight")
        return self.integer("expert_shared_feed_forward_length", found)

    def shared_width_or_none(self) -> int:
        """The same; 0 where there is no such expert."""
        return self.shared_width() if any(name.endswith("ffn_down_shexp.weight") for name in self.tensors) else 0

    def expert_count(self) -> int:
        """Raises UnsupportedError where there are none."""
        router = next((t for name, t in self.tensors.items() if name.endswith("ffn_gate_inp.weight")), None)
        count = self.integer("expert_count", 0 if router is None else router.shape[0])
        if count == 0:
            raise UnsupportedError(
                f"{self.file} is a dense model: it has no experts to page", remedy="name a Mixture-of-Experts model"
            )
        return count

    def layers(self) -> int:
        """Without those after the last that predict several tokens at once."""
        count = self.integer("block_count") - self.integer("nextn_predict_layers", 0)
        if not 1 <= count <= _MOST_LAYERS:
            raise self._strange("block_count", f"leaves {count} layers")
        return count

    def expert_groups(self) -> dict[str, int]:
        """Groups of experts, and of how many of them a token's experts are chosen."""
        groups, chosen = self.integer("expert_group_count", 1), self.integer("expert_group_used_count", 1)
        experts = self.expert_count()
        if experts % groups or (groups > 1 and experts // groups < 2):
            raise self._strange("expert_group_count", f"is {groups} of {experts} experts")
        if chosen > groups:
            raise self._strange("expert_group_used_count", f"is {chosen} of {groups}")
        return {"n_group": groups, "topk_group": chosen}

    def _last_axis(self, pattern: str) -> int | None:
        return next((t.shape[-1] for name, t in self.tensors.items() if re.fullmatch(pattern, name)), None)


def _as(kind: type[T], value: Any) -> T | None:
    """A number of metadata as another type that can hold it; None where it cannot, or there is none.

    Conversions differ in the types of numbers that they write, and llama.cpp reads most of them.
    """
    if isinstance(value, list) and value and all(item == value[0] for item in value):
        value = value[0]  # one a layer, and the same
    if type(value) not in (int, float, bool):
        return None
    if kind is not bool and isinstance(value, bool):
        return None
    converted = kind(value) if math.isfinite(value) else None
    return converted if converted == value else None


def decoder_config(given: Metadata) -> dict[str, Any]:
    """The fields that all decoders have."""
    heads = given.most("attention.head_count")
    theta = given.number("rope.freq_base", 10_000.0)
    ends = [given.token(name) for name in ("eos", "eot", "eom")]
    return {
        "hidden_size": given.integer("embedding_length"),
        "num_hidden_layers": given.layers(),
        "num_attention_heads": heads,
        "num_key_value_heads": given.most("attention.head_count_kv", heads),
        "max_position_embeddings": given.integer("context_length"),
        "rms_norm_eps": given.number("attention.layer_norm_rms_epsilon"),
        "rope_parameters": {"rope_theta": theta, **_rope_scaling(given)},
        "bos_token_id": given.token("bos"),
        "eos_token_id": list(dict.fromkeys(token for token in ends if token is not None)) or None,
        "pad_token_id": given.token("padding"),
    }


def head_dim(given: Metadata) -> int:
    return given.integer(
        "attention.key_length", given.integer("embedding_length") // max(1, given.most("attention.head_count"))
    )


def _rope_scaling(given: Metadata) -> dict[str, Any]:
    prefix = f"{given.architecture}.rope.scaling"
    kind, factor = given.values.get(f"{prefix}.type"), _linear_factor(given)
    if kind is None:
        kind = "none" if factor == 1 else "linear"  # as llama.cpp does where a file says nothing, or the older key
    if given.rope_factors and kind in ("none", "linear", "longrope"):
        return _rope_by_factors(given, 1.0 if kind == "none" else factor)
    if kind == "none":
        return {"rope_type": "default"}
    if kind == "linear" and not given.has("rope.scaling.factor"):
        return {"rope_type": "linear", "factor": factor} if factor != 1 else {"rope_type": "default"}
    special = [name for name in _UNSUPPORTED_SCALING if f"{prefix}.{name}" in given.values]
    special += sorted(given.rope_factors)
    if kind not in ("linear", "yarn") or special:
        raise UnsupportedError(
            f"{given.file} scales positions by {' with '.join([repr(kind), *special])}, which is not supported for"
            " GGUF files",
            remedy="use the model's safetensors repository",
        )
    scaling: dict[str, Any] = {"rope_type": kind, "factor": given.number("rope.scaling.factor")}
    if given.has("rope.scaling.original_context_length"):
        scaling["original_max_position_embeddings"] = given.integer("rope.scaling.original_context_length")
    if given.has("rope.scaling.yarn_log_multiplier"):  # a tenth of it, for old files' sake
        scaling["mscale"] = scaling["mscale_all_dim"] = _times_ten(given.number("rope.scaling.yarn_log_multiplier"))
    for name in ("beta_fast", "beta_slow"):
        if given.has(f"rope.scaling.yarn_{name}"):
            scaling[name] = given.number(f"rope.scaling.yarn_{name}")
    return scaling


def _times_ten(number: float) -> float:
    return float(f"{10 * number:.6g}")


def _linear_factor(given: Metadata) -> float:
    key = "rope.scaling.factor" if given.has("rope.scaling.factor") else "rope.scale_linear"
    return given.number(key, 1.0) or 1.0


def _rope_by_factors(given: Metadata, factor: float) -> dict[str, Any]:
    """Frequencies divided by tensors of the file: transformers calls that longrope, which has two sets of divisors.

    Llama 3's are one set, made of its rule of four numbers.
    """
    one = given.rope_factors.get(ROPE_FREQS)
    short, long = one or given.rope_factors.get(ROPE_SHORT), one or given.rope_factors.get(ROPE_LONG)
    wanted = given.integer("rope.dimension_count", head_dim(given)) // 2
    if short is None or long is None or {len(short), len(long)} != {wanted}:
        raise CheckpointError(
            f"{given.file} has no {wanted} factors of positions in each of {', '.join(given.rope_factors)}",
            remedy="download it again",
        )
    context = given.integer("context_length")
    return {
        "rope_type": "longrope",
        "short_factor": [factor * each for each in short],
        "long_factor": [factor * each for each in long],
        "attention_factor": given.number("rope.scaling.attn_factor", 1.0),
        "original_max_position_embeddings": given.integer("rope.scaling.original_context_length", context),
    }
