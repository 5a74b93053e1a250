"""Hash layers (Roller et al. 2021): an expert for each token of the vocabulary, whatever it means."""

from __future__ import annotations

import numpy as np

from moe_local.bench.strategies.base import Ids, LayerScores, Strategy


def _route(layer: LayerScores) -> Ids:
    table = np.random.default_rng(0).integers(0, layer.experts, int(layer.tokens.max()) + 1)
    return table[layer.tokens][:, None]


HASH = Strategy("hash", "https://arxiv.org/abs/2106.04426", "1", _route, note="every layer has the same table")
