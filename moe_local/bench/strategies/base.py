"""What a routing strategy is given and gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class LayerScores:
    """What a layer's router says of some tokens, which are routed together in batches."""

    scores: Floats  # [T, E]: its logits
    tokens: Ids  # [T]: of the vocabulary
    batches: tuple[slice, ...]  # of T, one after the other
    top_k: int  # the model's own

    @property
    def experts(self) -> int:
        return int(self.scores.shape[1])


@dataclass(frozen=True)
class Strategy:
    """`route` gives the experts of each token, [T, c], the number of experts standing for none.

    `alone` says whether a token can be routed when those after it are not known yet, as in decoding; `note` why not,
    or what was assumed.
    """

    title: str
    paper: str
    choices: str  # of a token
    route: Callable[[LayerScores], Ids]
    alone: bool = True
    note: str = ""


def best(scores: Floats, count: int) -> Ids:
    """The greatest of each row, the greatest first: [T, E] -> [T, count]."""
    return np.argsort(-scores, axis=1, kind="stable")[:, :count]


def softmax(scores: Floats) -> Floats:
    """Over the last axis."""
    shifted = np.exp(scores - scores.max(axis=-1, keepdims=True))
    found: Floats = shifted / shifted.sum(axis=-1, keepdims=True)
    return found


def places(chosen: Ids, experts: int) -> Ids:
    """Of each token, how many before it chose its expert: [T] -> [T]."""
    ones = chosen[:, None] == np.arange(experts)
    before = np.cumsum(ones, axis=0) - ones
    found: Ids = np.take_along_axis(before, np.minimum(chosen, experts - 1)[:, None], axis=1)[:, 0]
    return found


def by_batch(route: Callable[[LayerScores, slice], Ids], layer: LayerScores, width: int) -> Ids:
    """`route` of each batch, one below the other: [T, width]."""
    found = np.full((len(layer.tokens), width), layer.experts, dtype=np.int64)
    for batch in layer.batches:
        found[batch] = route(layer, batch)
    return found
