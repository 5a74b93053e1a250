"""What will be needed next. A new predictor is a file and a line in `PREDICTORS`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from moe_local.errors import MoeLocalError
from moe_local.prediction.base import Predictor, Scores
from moe_local.prediction.blend import Blend
from moe_local.prediction.routers import NextRouter
from moe_local.prediction.transitions import Transitions

Make = Callable[[NextRouter, Sequence[int]], Predictor]  # from the next routers and the experts of each layer

PREDICTORS: dict[str, Make] = {
    "router": lambda routers, experts: routers,
    "transitions": lambda routers, experts: Transitions(experts),
    "blend": lambda routers, experts: Blend([routers, Transitions(experts)]),
}

__all__ = ["PREDICTORS", "NextRouter", "Predictor", "Scores", "get_predictor"]


def get_predictor(name: str) -> Make:
    """Raises MoeLocalError naming the known predictors."""
    if name not in PREDICTORS:
        raise MoeLocalError(f"there is no predictor {name!r}", remedy=f"choose one of off, {', '.join(PREDICTORS)}")
    return PREDICTORS[name]
