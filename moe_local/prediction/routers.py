"""The next layer's router, applied to this layer's hidden state: the residual stream changes little in between.

As in https://arxiv.org/abs/2312.17238 (mixtral-offloading) and Fate (https://arxiv.org/abs/2502.12224).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from moe_local.prediction.base import Predictor, Scores

if TYPE_CHECKING:
    from torch import Tensor


class NextRouter:
    """`matrices` [experts, H] and biases [experts] by layer: what the layer after it would be asked with.

    The difference of the two layers' norms is folded in, so that this is one small product a layer.
    """

    def __init__(self, matrices: Mapping[int, tuple[Tensor, Tensor | None]]) -> None:
        self._matrices = matrices

    def scores(self, layer: int, hidden: Tensor, chosen: Sequence[int]) -> Scores | None:
        found = self._matrices.get(layer)
        if found is None or found[0].shape[1] != hidden.shape[1]:  # some experts are given a part of the stream
            return None
        weight, bias = found
        logits = hidden.to(weight.dtype) @ weight.T  # [T, experts]
        wanted = (logits if bias is None else logits.sigmoid() + bias).amax(dim=0)
        scores: Scores = wanted.float().cpu().numpy()
        return scores


def make(routers: NextRouter, experts: Sequence[int]) -> Predictor:
    return routers
