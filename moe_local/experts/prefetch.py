"""Reading ahead: what to read for the next layer while this one computes, and whether that pays at all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from torch import Tensor

from moe_local.experts.trial import PrefetchDepth, PrefetchTrial
from moe_local.keys import Key
from moe_local.prediction.base import Predictor
from moe_local.telemetry import Counters

Candidates = Callable[[], Iterable[Key]]


class Prefetcher:
    """Says what to read ahead: what the predictor thinks likeliest."""

    def __init__(
        self, predictor: Predictor, experts: Sequence[int], top_k: Sequence[int], counters: Counters
    ) -> None:
        self._predictor = predictor
        self._experts = experts
        self._top_k = top_k
        self._counters = counters
        self._trial = PrefetchTrial()
        self._depth = PrefetchDepth(max(top_k))
        self._predicted: tuple[int, list[int]] = (-1, [])  # layer, and its experts, the likeliest first

    def candidates(self, layer: int, hidden: Tensor, chosen: Sequence[int]) -> Candidates:
        """Keys to read while `layer` computes `chosen` on `hidden` [T, H]; to be asked once, when there is time."""
        self._check(layer, chosen)
        if len(hidden) > 1:
            self._trial.pause()
            return lambda: self._together(layer, hidden, chosen)
        if layer == 0:
            self._trial.token(self._counters.misses, self._counters.stall_seconds)
        if not self._trial.on:
            return tuple
        return lambda: self._likeliest(layer, hidden, chosen)

    def _check(self, layer: int, chosen: Sequence[int]) -> None:
        """Counts how right the last prediction was."""
        predicted, experts = self._predicted
        if predicted == layer:
            right = [expert in chosen for expert in experts]
            self._counters.predicted += len(right)
            self._counters.predicted_right += sum(right)
            self._counters.foreseeable += len(chosen)
            self._depth.learn(right)
        self._predicted = (-1, [])

    def _together(self, layer: int, hidden: Tensor, chosen: Sequence[int]) -> Iterable[Key]:
        """For many tokens as many experts as they need of this layer."""
        if layer + 1 >= len(self._experts):
            return ()
        count = min(len(chosen), self._experts[layer + 1])
        scores = self._predictor.scores(layer, hidden, chosen)
        best = range(count) if scores is None else np.argsort(-scores)[:count].tolist()
        return ((layer + 1, expert) for expert in best)

    def _likeliest(self, layer: int, hidden: Tensor, chosen: Sequence[int]) -> Iterable[Key]:
        scores = self._predictor.scores(layer, hidden, chosen)
        if scores is None:
            return ()
        count = min(self._top_k[layer + 1], len(scores))
        best = np.argpartition(-scores, count - 1)[:count]
        best = best[np.argsort(-scores[best])].tolist()
        self._predicted = (layer + 1, best)
        return [(layer + 1, expert) for expert in best[: self._depth.ranks]]
