"""Switch Transformers (Fedus et al. 2021): the best expert alone, and none for those who come when it is full."""

from __future__ import annotations

import math

import numpy as np

from moe_local.bench.strategies.base import Ids, LayerScores, Strategy, best, by_batch, places

_FACTOR = 1.25  # of an even share: what the paper finds best


def _route(layer: LayerScores) -> Ids:
    return by_batch(_of_batch, layer, 1)


def _of_batch(layer: LayerScores, batch: slice) -> Ids:
    scores, experts = layer.scores[batch], layer.experts
    capacity = math.ceil(_FACTOR * len(scores) / experts)
    first = best(scores, 1)[:, 0]
    return np.where(places(first, experts) < capacity, first, experts)[:, None]


SWITCH = Strategy(
    "Switch, top-1", "https://arxiv.org/abs/2101.03961", "1", _route, note="an expert takes 1.25 of an even share"
)
