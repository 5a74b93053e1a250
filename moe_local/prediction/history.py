"""Recent history: what a layer needed for the last tokens, it needs again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from moe_local.prediction.base import Scores

if TYPE_CHECKING:
    from torch import Tensor


_KEPT = 0.8  # of a use, from one token to the next


class History:
    """Fading uses of every expert of each layer."""

    def __init__(self, experts: Sequence[int]) -> None:
        self._uses = [np.zeros(count, dtype=np.float32) for count in experts]

    def scores(self, layer: int, hidden: Tensor, chosen: Sequence[int]) -> Scores | None:
        self._uses[layer] *= _KEPT
        self._uses[layer][list(chosen)] += 1
        return self._uses[layer + 1] if layer + 1 < len(self._uses) else None
