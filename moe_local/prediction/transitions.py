"""Which experts of the next layer followed those of this one, for the same token: counts, learned on line."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from moe_local.prediction.base import Predictor, Scores
from moe_local.prediction.routers import NextRouter

if TYPE_CHECKING:
    from torch import Tensor


class Transitions:
    """Counts of pairs of experts in neighbouring layers, [experts, experts] for each layer but the last."""

    def __init__(self, experts: Sequence[int]) -> None:
        self._pairs = [np.zeros(shape, dtype=np.float32) for shape in pairwise(experts)]
        self._uses = [np.full(count, 1.0, dtype=np.float32) for count in experts]
        self._last: tuple[int, Sequence[int]] = (-1, ())

    def scores(self, layer: int, hidden: Tensor, chosen: Sequence[int]) -> Scores | None:
        before, theirs = self._last
        self._last = (layer, chosen)
        if before == layer - 1 and before >= 0:
            self._pairs[before][np.ix_(theirs, chosen)] += 1
            self._uses[before][list(theirs)] += 1
        if layer >= len(self._pairs):
            return None
        rows = list(chosen)
        scores: Scores = (self._pairs[layer][rows] / self._uses[layer][rows, None]).sum(axis=0)
        return scores


def make(routers: NextRouter, experts: Sequence[int]) -> Predictor:
    return Transitions(experts)
