"""Expert choice (Zhou et al. 2022): each expert takes the tokens that it scores highest."""

from __future__ import annotations

import numpy as np

from moe_local.bench.strategies.base import Ids, LayerScores, Strategy, by_batch, softmax


def _route(layer: LayerScores) -> Ids:
    return by_batch(_of_batch, layer, layer.experts)


def _of_batch(layer: LayerScores, batch: slice) -> Ids:
    scores, experts = softmax(layer.scores[batch]), layer.experts
    capacity = min(len(scores), -(-len(scores) * layer.top_k // experts))
    taken = np.zeros(scores.shape, dtype=bool)
    np.put_along_axis(taken, np.argsort(-scores, axis=0, kind="stable")[:capacity], values=True, axis=0)
    return np.sort(np.where(taken, np.arange(experts), experts), axis=1)


EXPERT_CHOICE = Strategy(
    "expert choice",
    "https://arxiv.org/abs/2202.09368",
    "k on average",
    _route,
    alone=False,
    note="cannot decode token by token: whether an expert takes a token depends on the tokens that come after it",
)
