"""What a model is made of, from its config.json alone: parameters and bytes by plain arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moe_local.checkpoint.quantization import quantization_of
from moe_local.errors import CheckpointError, UnsupportedError

_MOST = 1 << 24  # of any field: beyond every model
_MOST_LAYERS = 1 << 12
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")  # transformers' names for one another
_NEVER = ("", False)
_ATTENTION_BIAS = ("attention_bias", False)


@dataclass(frozen=True)
class Matrices:
    """`count` matrices of one shape [out, width]."""

    out: int
    width: int
    count: int = 1

    @property
    def parameters(self) -> int:
        return self.out * self.width * self.count


@dataclass(frozen=True)
class ModelSizes:
    """A model's parts. Counts are of numbers; nothing is said of how many bits each takes."""

    name: str
    architecture: str  # config.json's model_type
    layers: int
    hidden: int
    kv_expansion: int  # how many times as large keys and values are when multiplied as in the cache
    experts: tuple[int, ...]  # of each MoE layer
    top_k: int
    expert: tuple[Matrices, ...]  # one expert: gate and up as one matrix, and down
    expert_biases: int
    linear: tuple[Matrices, ...]  # the dense part's linear layers; the output layer too where it is not tied
    plain: int  # norms, biases, routers, attention sinks
    embedding: Matrices
    tied: bool  # the output layer is the embedding
    kv_per_token: int  # numbers in the KV cache, all layers together
    positions: int | None  # the longest context
    quantised: str | None  # the scheme that the published weights are in
    notes: tuple[str, ...] = ()

    @property
    def expert_parameters(self) -> int:
        return sum(matrix.parameters for matrix in self.expert) + self.expert_biases

    @property
    def dense_held(self) -> int:
        """Parameters outside the experts."""
        return sum(matrix.parameters for matrix in self.linear) + self.plain + self.embedding.parameters

    @property
    def dense_read(self) -> int:
        """Parameters outside the experts that every token reads: of an embedding that is no output layer, one row."""
        return self.dense_held - (0 if self.tied else self.embedding.parameters)

    @property
    def parameters(self) -> int:
        return self.dense_held + sum(self.experts) * self.expert_parameters

    @property
    def token_set(self) -> int:
        """Experts that one token needs, all layers together."""
        return len(self.experts) * self.top_k


@dataclass(frozen=True)
class Family:
    """What tells one architecture from another. Flags are a field of config.json and what it is where absent."""

    width: str = "moe_intermediate_size"  # of an expert
    dense_layers: str = ""  # which layers have no experts: by "step", "first" so many, or "types"
    shared: str = ""  # experts for every token: a "number" of them, or one "gated" of a width of its own
    latent: bool = False  # multi-head latent attention
    qkv_bias: tuple[str, bool] = _NEVER
    out_bias: tuple[str, bool] = _NEVER
    mlp_bias: tuple[str, bool] = _NEVER
    qk_norm: str = ""  # "head": one for all heads; "flat": across heads; or the name of the flag for "head"
    biased_experts: bool = False  # and router
    sinks: bool = False


_DEEPSEEK = Family(
    dense_layers="first", shared="number", latent=True, qkv_bias=_ATTENTION_BIAS, out_bias=_ATTENTION_BIAS
)
FAMILIES: dict[str, Family] = {
    "deepseek_v2": Family(**{**vars(_DEEPSEEK), "mlp_bias": ("mlp_bias", False)}),
    "deepseek_v3": _DEEPSEEK,
    "glm4_moe": Family(
        dense_layers="first", shared="number", qkv_bias=_ATTENTION_BIAS, qk_norm="use_qk_norm"
    ),
    "glm4_moe_lite": Family(**{**vars(_DEEPSEEK), "dense_layers": "types"}),
    "gpt_oss": Family(
        width="intermediate_size",
        qkv_bias=("attention_bias", True),
        out_bias=("attention_bias", True),
        biased_experts=True,
        sinks=True,
    ),
    "granitemoe": Family(width="intermediate_size", qkv_bias=_ATTENTION_BIAS, out_bias=_ATTENTION_BIAS),
    "minimax_m2": Family(width="intermediate_size", qk_norm="flat"),
    "mixtral": Family(width="intermediate_size"),
    "olmoe": Family(
        width="intermediate_size", qkv_bias=_ATTENTION_BIAS, out_bias=_ATTENTION_BIAS, qk_norm="flat"
    ),
    "qwen2_moe": Family(dense_layers="step", shared="gated", qkv_bias=("qkv_bias", True)),
    "qwen3_moe": Family(
        dense_layers="step", qkv_bias=_ATTENTION_BIAS, out_bias=_ATTENTION_BIAS, qk_norm="head"
    ),
}  # fmt: skip


class Fields:
    """A config.json's fields, each checked as it is read. Every refusal is a CheckpointError with file and field."""

    def __init__(self, config: Mapping[str, Any], where: str) -> None:
        self._config = config
        self.where = where

    def whole(self, name: str, default: int | None = None, *, least: int = 1, most: int = _MOST) -> int:
        """A whole number; `default` where it is absent or null."""
        value = self._config.get(name)
        value = default if value is None else value
        if value is None:
            raise self.refuse(f"has no {name}")
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise self.refuse(f"says {name} {short(value)}, not a whole number from {least} to {most}")
        return value

    def nullable(self, name: str) -> int | None:
        """A whole number or null, and it must say which."""
        if name not in self._config:
            raise self.refuse(f"has no {name}")
        return None if self._config[name] is None else self.whole(name)

    def flag(self, field: tuple[str, bool]) -> bool:
        name, default = field
        value = self._config.get(name, default)
        if not isinstance(value, bool):
            raise self.refuse(f"says {name} {short(value)}, neither true nor false")
        return value

    def items(self, name: str, kind: type) -> list[Any] | None:
        """A list of `kind`, or None where it is absent or null."""
        value = self._config.get(name)
        if value is None:
            return None
        if not isinstance(value, list) or not all(type(item) is kind for item in value):
            raise self.refuse(f"says {name} {short(value)}, not a list of {kind.__name__}")
        return value

    def refuse(self, said: str) -> CheckpointError:
        return CheckpointError(f"{self.where} {said}", remedy="download it again")


def short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def model_sizes(config: Mapping[str, Any], name: str, where: str = "config.json") -> ModelSizes:
    """The sizes of the model that a config.json (found at `where`) describes.

    Raises UnsupportedError for an architecture not in FAMILIES, CheckpointError for fields that make no sense.
    """
    family = _family(config, where)
    fields = Fields(config, where)
    layers = fields.whole("num_hidden_layers", most=_MOST_LAYERS)
    hidden = fields.whole("hidden_size")
    embedding = Matrices(fields.whole("vocab_size"), hidden)
    experts = _experts(config, fields)
    top_k = fields.whole("num_experts_per_tok", most=experts)
    sparse = _moe_layers(family, fields, layers)
    dense = layers - sparse
    attention, attention_plain, kv, expansion = (_latent if family.latent else _grouped)(family, fields, hidden)
    shared, shared_plain = _shared(family, fields, hidden)
    mlps = _gated(hidden, fields.whole("intermediate_size")) if dense else []
    mlp_plain = _mlp_biases(family, fields, hidden, fields.whole("intermediate_size")) if dense else 0
    tied = fields.flag(("tie_word_embeddings", False))
    width = fields.whole(family.width)
    biases = 2 * width + hidden if family.biased_experts else 0
    return ModelSizes(
        name=name,
        architecture=str(config["model_type"]),
        layers=layers,
        hidden=hidden,
        kv_expansion=expansion,
        experts=(experts,) * sparse,
        top_k=top_k,
        expert=(Matrices(2 * width, hidden), Matrices(hidden, width)),
        expert_biases=biases,
        linear=(
            *_times(attention, layers),
            *_times(mlps, dense),
            *_times(shared, sparse),
            *([] if tied else [embedding]),
        ),
        plain=layers * (attention_plain + 2 * hidden)
        + dense * mlp_plain
        + sparse * (shared_plain + experts * (hidden + int(family.biased_experts)))
        + hidden,
        embedding=embedding,
        tied=tied,
        kv_per_token=layers * kv,
        positions=fields.whole("max_position_embeddings", 0, least=0, most=1 << 40) or None,
        quantised=_quantised(config),
        notes=tuple(_notes(config)),
    )


def _family(config: Mapping[str, Any], where: str) -> Family:
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise CheckpointError(f"{where} has no model_type", remedy="download it again")
    if model_type not in FAMILIES:
        raise UnsupportedError(
            f"{where} is of model_type {short(model_type)}, and sizes are known of {', '.join(FAMILIES)}",
            remedy="`moe-local inspect` plans every architecture, from a checkpoint",
        )
    return FAMILIES[model_type]


def _experts(config: Mapping[str, Any], fields: Fields) -> int:
    return fields.whole(next((name for name in _EXPERTS if config.get(name) is not None), _EXPERTS[0]))


def _moe_layers(family: Family, fields: Fields, layers: int) -> int:
    """How many of the layers have experts. Raises UnsupportedError if none."""
    found = layers
    if family.dense_layers == "first":
        found = layers - fields.whole("first_k_dense_replace", least=0)
        if fields.whole("moe_layer_freq", 1) != 1:
            raise UnsupportedError(f"{fields.where} says moe_layer_freq, which transformers does not follow")
    elif family.dense_layers == "types":
        kinds = fields.items("mlp_layer_types", str) or ["dense"] + ["sparse"] * (layers - 1)
        if len(kinds) != layers:
            raise fields.refuse(f"says mlp_layer_types of {len(kinds)} layers and num_hidden_layers {layers}")
        found = kinds.count("sparse")
    elif family.dense_layers == "step":
        step, without = fields.whole("decoder_sparse_step", 1), set(fields.items("mlp_only_layers", int) or ())
        found = sum((layer + 1) % step == 0 and layer not in without for layer in range(layers))
    if found < 1:
        raise UnsupportedError(f"{fields.where} has no layer with experts", remedy="name a Mixture-of-Experts model")
    return found


def _grouped(family: Family, fields: Fields, hidden: int) -> tuple[list[Matrices], int, int, int]:
    """One layer's attention: its matrices, its other parameters, its numbers in the KV cache a token, and how many
    times as many it multiplies."""
    heads = fields.whole("num_attention_heads")
    kv_heads = fields.whole("num_key_value_heads", heads, most=heads)
    size = fields.whole("head_dim", hidden // heads)
    q, kv = heads * size, kv_heads * size
    plain = (q + 2 * kv) * fields.flag(family.qkv_bias) + hidden * fields.flag(family.out_bias)
    if family.qk_norm == "flat":
        plain += q + kv
    elif family.qk_norm == "head" or (family.qk_norm and fields.flag((family.qk_norm, False))):
        plain += 2 * size
    plain += heads * family.sinks
    return [Matrices(q, hidden), Matrices(kv, hidden, 2), Matrices(hidden, q)], plain, 2 * kv, heads // kv_heads


def _latent(family: Family, fields: Fields, hidden: int) -> tuple[list[Matrices], int, int, int]:
    """As `_grouped`; the cache holds what keys and values are expanded from."""
    heads, rank, q_rank = (
        fields.whole("num_attention_heads"), fields.whole("kv_lora_rank"), fields.nullable("q_lora_rank")
    )  # fmt: skip
    nope, rope, value = (fields.whole(name) for name in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"))
    q = heads * (nope + rope)
    queries = [Matrices(q, hidden)] if q_rank is None else [Matrices(q_rank, hidden), Matrices(q, q_rank)]
    keys = [Matrices(rank + rope, hidden), Matrices(heads * (nope + value), rank)]
    norms = rank + (q_rank or 0)
    biases = (norms + rope) * fields.flag(family.qkv_bias) + hidden * fields.flag(family.out_bias)
    expansion = -(-heads * (nope + rope + value) // (rank + rope))
    return [*queries, *keys, Matrices(hidden, heads * value)], norms + biases, rank + rope, expansion


def _shared(family: Family, fields: Fields, hidden: int) -> tuple[list[Matrices], int]:
    """One layer's experts for every token: matrices and biases."""
    if family.shared == "gated":
        width = fields.whole("shared_expert_intermediate_size", least=0)
        return [*_gated(hidden, width), Matrices(1, hidden)], 0
    width = fields.whole("n_shared_experts", 0, least=0) * fields.whole(family.width) if family.shared else 0
    return (_gated(hidden, width), _mlp_biases(family, fields, hidden, width)) if width else ([], 0)


def _gated(hidden: int, width: int) -> list[Matrices]:
    """Gate and up, then down."""
    return [Matrices(width, hidden, 2), Matrices(hidden, width)]


def _mlp_biases(family: Family, fields: Fields, hidden: int, width: int) -> int:
    return (2 * width + hidden) * fields.flag(family.mlp_bias)


def _times(matrices: list[Matrices], layers: int) -> list[Matrices]:
    return [Matrices(m.out, m.width, m.count * layers) for m in matrices] if layers else []


def _quantised(config: Mapping[str, Any]) -> str | None:
    found = quantization_of(config)
    return None if found is None else found[0]


def _notes(config: Mapping[str, Any]) -> list[str]:
    notes = []
    if config.get("sliding_window") and config.get("use_sliding_window") is not False:
        notes.append("sliding windows are ignored: every layer's KV cache is counted at the full context")
    if config.get("num_nextn_predict_layers"):
        notes.append("layers for multi-token prediction are not counted: they are not loaded")
    return notes
