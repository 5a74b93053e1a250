"""Balance by a bias (Wang et al. 2024, DeepSeek-V3): the k best of scores that busy experts lose a little of."""

from __future__ import annotations

import numpy as np

from moe_local.bench.strategies.base import Floats, Ids, LayerScores, Strategy, best

_RATE = 0.001  # a step of the bias, as the paper takes
_STEPS = 500  # through the batches, again and again, before they are routed


def _route(layer: LayerScores) -> Ids:
    scores: Floats = (1 / (1 + np.exp(-layer.scores))).astype(np.float32)
    bias = np.zeros(layer.experts, dtype=np.float32)
    for step in range(_STEPS):
        batch = layer.batches[step % len(layer.batches)]
        load = np.bincount(_chosen(scores[batch], bias, layer), minlength=len(bias))
        bias += _RATE * np.sign(load.mean() - load)
    return best(scores + bias, layer.top_k)


def _chosen(scores: Floats, bias: Floats, layer: LayerScores) -> Ids:
    found: Ids = np.argpartition(-(scores + bias), layer.top_k - 1, axis=1)[:, : layer.top_k].ravel()
    return found


BIAS = Strategy(
    "bias-balanced top-k", "https://arxiv.org/abs/2408.15664", "k", _route, note="the bias is learnt from this text"
)
