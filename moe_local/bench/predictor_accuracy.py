"""How right predictors would have been on a trace: those that need no more than which experts were chosen."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from moe_local.bench.replay import EVERY
from moe_local.bench.trace import Trace
from moe_local.errors import MoeLocalError
from moe_local.prediction import PREDICTORS
from moe_local.prediction.base import Predictor
from moe_local.prediction.routers import NextRouter

_NO_STATE = torch.empty(0, 0)  # a trace has no hidden states


@dataclass(frozen=True)
class Foresight:
    """One predictor, its `depth` likeliest experts of the next layer, while tokens were decoded one by one."""

    predictor: str
    depth: int
    recall: float  # of the experts that were needed
    precision: float  # of those that were predicted


def choose(names: Sequence[str], trace: Trace) -> list[str]:
    """Predictors by name; `all` stands for those that can tell anything from a trace.

    Raises MoeLocalError for unknown names and for a predictor that needs more.
    """
    chosen: dict[str, None] = {}
    for name in names:
        if name == EVERY:
            chosen |= dict.fromkeys(known for known in PREDICTORS if _can_tell(known, trace))
        elif _can_tell(name, trace):
            chosen[name] = None
        else:
            raise MoeLocalError(
                f"{name} needs the model's hidden states, which a trace has not",
                remedy=f"`moe-local bench MODEL --prefetch {name}` tells how right it is",
            )
    return list(chosen)


def _can_tell(name: str, trace: Trace) -> bool:
    return trace.layers > 1 and _make(name, trace).scores(0, _NO_STATE, [0]) is not None


def _make(name: str, trace: Trace) -> Predictor:
    return PREDICTORS.named(name)(NextRouter({}), [trace.experts] * trace.layers)


def foresee(
    trace: Trace, names: Sequence[str], report: Callable[[str, float], None] = lambda stage, fraction: None
) -> list[Foresight]:
    """Every predictor at half of a token's experts, at as many, and at twice as many."""
    if not names:
        return []
    tokens = trace.ids[np.repeat(trace.steps == 1, trace.steps)]  # [tokens, layers, k]
    if not len(tokens):
        raise MoeLocalError("no token of this trace was decoded by itself", remedy="record one with new tokens")
    found: list[Foresight] = []
    for name in names:
        predictor = _make(name, trace)

        def progress(done: float, name: str = name) -> None:
            report(f"predicting by {name}", done)

        found.extend(_one(name, predictor, tokens, trace.experts, progress))
    return found


def _one(
    name: str,
    predictor: Predictor,
    tokens: NDArray[np.unsignedinteger],
    experts: int,
    report: Callable[[float], None],
) -> Iterator[Foresight]:
    layers, top_k = tokens.shape[1:]
    most = min(experts, 2 * top_k)
    right = np.zeros(most, dtype=np.int64)  # of each rank, the likeliest first
    predictions = needed = 0
    for number, token in enumerate(tokens):
        ahead: NDArray[np.int64] | None = None
        for layer in range(layers):
            chosen = np.unique(token[layer][token[layer] < experts]).astype(np.int64)
            if ahead is not None:
                right += np.isin(ahead, chosen)
                predictions += 1
                needed += len(chosen)
            scores = predictor.scores(layer, _NO_STATE, chosen.tolist())
            ahead = None if scores is None else np.argsort(-scores, kind="stable")[:most]
        if number % 500 == 0:
            report(number / len(tokens))
    for depth in sorted({max(1, top_k // 2), top_k, most}):
        hits = int(right[:depth].sum())
        yield Foresight(name, depth, hits / max(1, needed), hits / max(1, predictions * depth))
