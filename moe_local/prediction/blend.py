"""Several predictors, each in standard deviations from its own mean, added."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from moe_local.prediction.base import Predictor, Scores
from moe_local.prediction.routers import NextRouter
from moe_local.prediction.transitions import Transitions

if TYPE_CHECKING:
    from torch import Tensor


class Blend:
    """The sum of the standardised scores of those that can tell."""

    def __init__(self, parts: Sequence[Predictor]) -> None:
        self._parts = parts

    def scores(self, layer: int, hidden: Tensor, chosen: Sequence[int]) -> Scores | None:
        found = [part.scores(layer, hidden, chosen) for part in self._parts]
        known = [_standard(scores) for scores in found if scores is not None]
        return np.sum(known, axis=0) if known else None


def _standard(scores: Scores) -> Scores:
    standard: Scores = (scores - scores.mean()) / (scores.std() + 1e-9)
    return standard


def make(routers: NextRouter, experts: Sequence[int]) -> Predictor:
    return Blend([routers, Transitions(experts)])
