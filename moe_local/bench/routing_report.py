"""What routing strategies would make of a model's router scores: balance, dropped tokens, experts to fetch, hits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_local.bench.replay import choose as choose_policies
from moe_local.bench.replay import possible, replay
from moe_local.bench.report import head
from moe_local.bench.scores import Scores
from moe_local.bench.strategies import STRATEGIES
from moe_local.bench.strategies.base import Ids, LayerScores, Strategy
from moe_local.bench.trace import Trace, id_type
from moe_local.errors import MoeLocalError

EVERY = "all"


@dataclass(frozen=True)
class RoutingQuestion:
    """What is to be compared. `batch` tokens are routed together."""

    strategies: Sequence[str] = (EVERY,)
    batch: int = 64
    capacities: Sequence[float] = (0.125, 0.25, 0.5)
    policies: Sequence[str] = ("lfru",)

    def __post_init__(self) -> None:
        if self.batch < 2:
            raise MoeLocalError(f"--batch {self.batch} routes no tokens together", remedy="give at least 2")

    @property
    def chosen(self) -> list[str]:
        """Names of strategies. Raises MoeLocalError for unknown ones."""
        found: dict[str, None] = {}
        for name in self.strategies:
            if name != EVERY:
                STRATEGIES.assert_named(name)
            found |= dict.fromkeys(STRATEGIES if name == EVERY else [name])
        return list(found)


def routing_report(
    scores: Scores, question: RoutingQuestion, version: str, report: Callable[[str, float], None]
) -> dict[str, Any]:
    """The bench's report of kind "routing". Raises MoeLocalError for unknown strategies and policies."""
    names = question.chosen
    choose_policies(question.policies)
    found = []
    for number, name in enumerate(names):
        report(f"routing by {name}", number / len(names))
        found.append({"strategy": name, **_one(STRATEGIES[name], scores, question)})
    layers, experts = scores.scores.shape[1:]
    return {
        **head("routing", version),
        "model": {
            "name": scores.model, "layers": layers, "experts": [experts] * layers, "top_k": scores.top_k,
            "record_bytes": None, "format": None,
        },
        "strategies": {
            "tokens": len(scores.tokens), "batch": question.batch, "capacities": list(question.capacities),
            "results": found,
        },
    }  # fmt: skip


def _one(strategy: Strategy, scores: Scores, question: RoutingQuestion) -> dict[str, Any]:
    batches = _batches(scores.lens, question.batch)
    layers = [
        strategy.route(LayerScores(of.astype(np.float32), scores.tokens.astype(np.int64), batches, scores.top_k))
        for of in np.moveaxis(scores.scores, 1, 0)
    ]
    experts = scores.scores.shape[2]
    ids = np.full((len(scores.tokens), len(layers), max(of.shape[1] for of in layers)), experts, dtype=np.int64)
    for number, of in enumerate(layers):
        ids[:, number, : of.shape[1]] = of
    return {
        "title": strategy.title,
        "paper": strategy.paper,
        "choices": strategy.choices,
        "alone": strategy.alone,
        "note": strategy.note,
        **_balance(ids, batches, experts),
        "hits": _hits(ids, scores, question) if strategy.alone else [],
    }


def _batches(lens: NDArray[np.int32], size: int) -> tuple[slice, ...]:
    """Tokens that are routed together: of one text, up to `size`."""
    found, begin = [], 0
    for length in lens.tolist():
        found += [slice(at, min(at + size, begin + length)) for at in range(begin, begin + length, size)]
        begin += length
    return tuple(found)


def _balance(ids: Ids, batches: Sequence[slice], experts: int) -> dict[str, float]:
    """ids [T, layers, c]; means over the layers, and over the batches."""
    real = ids < experts
    layers = range(ids.shape[1])
    loads = np.array([np.bincount(ids[:, layer].ravel(), minlength=experts + 1)[:experts] for layer in layers])
    different = [len(np.unique(ids[batch, layer][real[batch, layer]])) for batch in batches for layer in layers]
    return {
        "busiest": round(float((loads.max(axis=1) / loads.mean(axis=1)).mean()), 4),
        "unused": round(float((loads == 0).mean()), 4),
        "dropped": round(float((~real.any(axis=2)).mean()), 4),
        "experts_per_token": round(float(real.sum(axis=2).mean()), 4),
        "experts_per_batch": round(float(np.mean(different)), 4),
    }


def _hits(ids: Ids, scores: Scores, question: RoutingQuestion) -> list[dict[str, Any]]:
    """Hit rates of the tokens one by one, for each policy at each capacity that holds one token's experts, Belady's
    optimum last.
    """
    experts = scores.scores.shape[2]
    names = tuple(map(str, range(len(scores.lens))))
    narrow: Any = ids.astype(id_type(experts))
    trace = Trace(narrow, scores.lens, names, experts)
    kept, _ = possible(trace, question.capacities)
    if not kept:
        return []
    shares = {slots: share for share, slots in kept}
    found = replay(trace, choose_policies(question.policies), [*shares])
    return [
        {"policy": one.policy, "capacity": shares[one.slots], "hit_rate": round(one.hit_rate, 6)} for one in found
    ]
