"""The k best experts of each token, as most models of today choose."""

from __future__ import annotations

from moe_local.bench.strategies.base import Ids, LayerScores, Strategy, best


def _route(layer: LayerScores) -> Ids:
    return best(layer.scores, layer.top_k)


TOP_K = Strategy("top-k", "https://arxiv.org/abs/1701.06538", "k", _route)
