"""BASE layers (Lewis et al. 2021): the assignment with the greatest sum of scores that gives all experts as many."""

from __future__ import annotations

import numpy as np

from moe_local.bench.strategies.base import Ids, LayerScores, Strategy, by_batch
from moe_local.errors import MoeLocalError


def _route(layer: LayerScores) -> Ids:
    return by_batch(_of_batch, layer, 1)


def _of_batch(layer: LayerScores, batch: slice) -> Ids:
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise MoeLocalError("balanced assignment needs scipy", remedy="pip install 'moe-local[bench]'") from error
    scores, experts = layer.scores[batch], layer.experts
    rounds = -(-len(scores) // experts)  # places that each expert has
    rows, columns = linear_sum_assignment(np.tile(scores, rounds), maximize=True)
    found = np.empty(len(scores), dtype=np.int64)
    found[rows] = columns % experts
    return found[:, None]


BASE = Strategy(
    "BASE, balanced",
    "https://arxiv.org/abs/2103.16716",
    "1",
    _route,
    alone=False,
    note="a batch is assigned as a whole; alone, a token takes its best expert",
)
