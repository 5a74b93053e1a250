"""Noisy top-k gating (Shazeer et al. 2017): the k best after a noise that the router learns the size of."""

from __future__ import annotations

import math

import numpy as np

from moe_local.bench.strategies.base import Floats, Ids, LayerScores, Strategy, best

_SIZE = math.log(2)  # softplus(0): what the noise begins with, its weights being zero


def _route(layer: LayerScores) -> Ids:
    noise: Floats = np.random.default_rng(0).standard_normal(layer.scores.shape, dtype=np.float32)
    return best(layer.scores + noise * _SIZE, layer.top_k)


NOISY = Strategy(
    "noisy top-k", "https://arxiv.org/abs/1701.06538", "k", _route, note="noise of the size that training begins with"
)
