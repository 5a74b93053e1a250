"""GShard (Lepikhin et al. 2020): the best two, the second by chance as it weighs, within a capacity."""

from __future__ import annotations

import math

import numpy as np

from moe_local.bench.strategies.base import Ids, LayerScores, Strategy, best, by_batch, places, softmax


def _route(layer: LayerScores) -> Ids:
    return by_batch(_of_batch, layer, 2)


def _of_batch(layer: LayerScores, batch: slice) -> Ids:
    scores, experts = layer.scores[batch], layer.experts
    capacity = math.ceil(2 * len(scores) / experts)
    chosen = best(scores, 2)
    weights = np.take_along_axis(softmax(scores), chosen, axis=1)
    share = weights[:, 1] / weights.sum(axis=1)
    wanted = np.random.default_rng(0).random(len(scores)) < 2 * share
    second = np.where(wanted, chosen[:, 1], experts)
    firsts = np.bincount(chosen[:, 0], minlength=experts)
    taken = np.minimum(firsts, capacity)[np.minimum(second, experts - 1)]
    kept = [places(chosen[:, 0], experts) < capacity, (places(second, experts) + taken < capacity) & wanted]
    return np.where(np.stack(kept, axis=1), np.stack([chosen[:, 0], second], axis=1), experts)


GSHARD = Strategy(
    "GShard, top-2",
    "https://arxiv.org/abs/2006.16668",
    "2",
    _route,
    note="an expert takes an even share",
)
