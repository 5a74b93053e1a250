"""From config.json alone to a model's sizes, for the architectures that are published most: plain arithmetic.

A new architecture is a line in `FAMILIES`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from moe_local.checkpoint.quantization import quantization_of
from moe_local.errors import CheckpointError, UnsupportedError
from moe_local.planning.config_fields import Fields, short
from moe_local.planning.sizes import Attention, Matrices, ModelSizes

_MOST_LAYERS = 1 << 12
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")  # transformers' names for one another
_NEVER = ("", False)
_ATTENTION_BIAS = ("attention_bias", False)
_USED = ("use_sliding_window", False)


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
    sinks: bool = False  # which transformers computes eagerly
    wide_router: bool = False  # it is held in float32
    corrected: bool = False  # the router's choices, by numbers that are no parameters
    window: tuple[str, int] = (
        "",
        0,
    )  # layers that see no more: "every" or "alternate"; and tokens where none are said
    windowed: tuple[str, bool] = ("", True)  # whether they are


_DEEPSEEK = Family(
    dense_layers="first",
    shared="number",
    latent=True,
    qkv_bias=_ATTENTION_BIAS,
    out_bias=_ATTENTION_BIAS,
    wide_router=True,
    corrected=True,
)
FAMILIES: dict[str, Family] = {
    "deepseek_v2": replace(_DEEPSEEK, mlp_bias=("mlp_bias", False), corrected=False),
    "deepseek_v3": _DEEPSEEK,
    "glm4_moe": Family(
        dense_layers="first", shared="number", qkv_bias=_ATTENTION_BIAS, qk_norm="use_qk_norm", wide_router=True,
        corrected=True,
    ),
    "glm4_moe_lite": replace(_DEEPSEEK, dense_layers="types"),
    "gpt_oss": Family(
        width="intermediate_size",
        qkv_bias=("attention_bias", True),
        out_bias=("attention_bias", True),
        biased_experts=True,
        sinks=True,
        window=("alternate", 128),
    ),
    "granitemoe": Family(width="intermediate_size", qkv_bias=_ATTENTION_BIAS, out_bias=_ATTENTION_BIAS),
    "minimax_m2": Family(width="intermediate_size", qk_norm="flat", corrected=True),
    "mixtral": Family(width="intermediate_size", window=("every", 0)),
    "olmoe": Family(
        width="intermediate_size", qkv_bias=_ATTENTION_BIAS, out_bias=_ATTENTION_BIAS, qk_norm="flat"
    ),
    "qwen2_moe": Family(
        dense_layers="step", shared="gated", qkv_bias=("qkv_bias", True), window=("alternate", 4096), windowed=_USED
    ),
    "qwen3_moe": Family(
        dense_layers="step", qkv_bias=_ATTENTION_BIAS, out_bias=_ATTENTION_BIAS, qk_norm="head",
        window=("every", 4096), windowed=_USED,
    ),
}  # fmt: skip


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
    matrices, attention_plain, attention = (_latent if family.latent else _grouped)(family, fields, hidden)
    sliding, window = _window(family, fields, layers)
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
        attention=replace(attention, sliding=sliding, window=window, eager=family.sinks),
        experts=(experts,) * sparse,
        top_k=top_k,
        expert=(Matrices(2 * width, hidden), Matrices(hidden, width)),
        expert_biases=biases,
        linear=(
            *_times(matrices, layers),
            *_times(mlps, dense),
            *_times(shared, sparse),
            *([] if tied else [embedding]),
        ),
        plain=layers * (attention_plain + 2 * hidden)
        + dense * mlp_plain
        + sparse * (shared_plain + experts * (hidden + int(family.biased_experts)))
        + hidden,
        wide=sparse * experts * hidden * family.wide_router,
        buffers=sparse * experts * (4 if family.wide_router else 2) * family.corrected,
        embedding=embedding,
        tied=tied,
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


def _grouped(family: Family, fields: Fields, hidden: int) -> tuple[list[Matrices], int, Attention]:
    """One layer's attention: its matrices, its other parameters, and what it takes beside them."""
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
    matrices = [Matrices(q, hidden), Matrices(kv, hidden, 2), Matrices(hidden, q)]
    return matrices, plain, Attention(heads, 2 * kv, heads // kv_heads)


def _latent(family: Family, fields: Fields, hidden: int) -> tuple[list[Matrices], int, Attention]:
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
    attention = Attention(heads, rank + rope, expanded=heads * (nope + rope + value))
    return [*queries, *keys, Matrices(hidden, heads * value)], norms + biases, attention


def _window(family: Family, fields: Fields, layers: int) -> tuple[int, int]:
    """How many layers see a window alone, and its tokens."""
    which, default = family.window
    window = fields.whole("sliding_window", default, least=0) if which and fields.flag(family.windowed) else 0
    if not window or which == "every":
        return layers if window else 0, window
    alternate = range(0, min(layers, fields.whole("max_window_layers", layers, least=0)), 2)
    kinds = fields.items("layer_types", str)
    if kinds is not None and len(kinds) != layers:
        raise fields.refuse(f"says layer_types of {len(kinds)} layers and num_hidden_layers {layers}")
    return len(alternate) if kinds is None else kinds.count("sliding_attention"), window


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
    if config.get("num_nextn_predict_layers"):
        notes.append("layers for multi-token prediction are not counted: they are not loaded")
    return notes
