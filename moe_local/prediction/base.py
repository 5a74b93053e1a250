"""What a predictor is: which experts will the next layer need for this token, or these?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

    from moe_local.prediction.routers import NextRouter


Scores = NDArray[np.float32]  # [experts of the next layer]: the higher the likelier


class Predictor(Protocol):
    """Learns while a model decodes, token by token and layer by layer."""

    def scores(self, layer: int, hidden: Tensor, chosen: Sequence[int]) -> Scores | None:
        """For the layer after `layer`, which is about to run `chosen` on `hidden` [T, H]; None where it cannot tell.

        Called for every layer of every token, in order: this is also where a predictor learns.
        """


class MakePredictor(Protocol):
    """Makes a predictor, of the next layers' routers and the number of experts of each layer."""

    def __call__(self, routers: NextRouter, experts: Sequence[int]) -> Predictor: ...
