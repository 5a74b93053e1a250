"""MLX's names of experts, and those that the models were published with.

MLX's tools stack a layer's experts, `...mlp.switch_mlp.gate_proj.weight` [experts, out, in], where the original has
`...mlp.experts.3.gate_proj.weight`. A matrix of a stack is a run of the file, so the original's tensors are all
there. For some models they change more than names (norms' weights, convolutions' axes, attention's projections):
those are refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from moe_local.checkpoint.header import TensorEntry
from moe_local.checkpoint.record import EncodedTensor, Source
from moe_local.errors import CheckpointError, UnsupportedError

_STACK = ".switch_mlp."
_SPLIT = ".embed_q."  # of DeepSeek's attention, since 2026
_SAME = {"gate_proj": "gate_proj", "up_proj": "up_proj", "down_proj": "down_proj"}
_MIXTRAL = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
# Models of which MLX changes no more than this, with what they call an expert's projections.
_PROJECTIONS = {
    **dict.fromkeys(
        ("qwen2_moe", "qwen3_moe", "olmoe", "glm4_moe", "deepseek", "deepseek_v2", "ernie4_5_moe"), _SAME
    ),
    **dict.fromkeys(("mixtral", "phimoe", "minimax", "minimax_m2"), _MIXTRAL),
}


def published(config: Mapping[str, Any], sources: Mapping[str, Source], *, mlx: bool) -> dict[str, Source]:
    """The same tensors, every stack of MLX's taken apart. `mlx` says that they are MLX's, stacks or none.

    Raises UnsupportedError for models of which MLX changes more, CheckpointError for a stack that is none.
    """
    if not mlx and not any(_STACK in name for name in sources):
        return dict(sources)
    model_type = config.get("model_type")
    names = _PROJECTIONS.get(model_type) if isinstance(model_type, str) else None
    if names is None or any(_SPLIT in name for name in sources):
        raise UnsupportedError(
            f"MLX's weights of models of type {model_type!r} cannot be read",
            remedy=f"use the original checkpoint, or MLX's of one of {', '.join(sorted(_PROJECTIONS))}",
        )
    found: dict[str, Source] = {}
    for name, source in sources.items():
        if _STACK not in name:
            found[name] = source
            continue
        parts = list(_experts(source)) if len(source.shape) > 1 else []
        before, _, after = name.partition(_STACK)
        projection, _, kind = after.partition(".")
        if not parts or projection not in names or not kind:
            raise CheckpointError(f"tensor {name!r} is not a stack of experts", remedy="download it again")
        for expert, part in enumerate(parts):
            its = f"{before}.experts.{expert}.{names[projection]}.{kind}"
            found[its] = replace(part, name=its)
    return found


def _experts(source: Source) -> Iterator[Source]:
    """The parts of a stack, one an expert."""
    for expert in range(source.shape[0]):
        if isinstance(source, TensorEntry):
            yield _part(source, expert)
        else:
            parts = {name: _part(part, expert) for name, part in source.parts.items()}
            yield EncodedTensor(source.name, source.shape[1:], source.encoding, parts, source.transposed)


def _part(stack: TensorEntry, expert: int) -> TensorEntry:
    length = stack.length // stack.shape[0]
    return replace(stack, shape=stack.shape[1:], offset=stack.offset + expert * length, length=length)
