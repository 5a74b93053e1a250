"""What will be needed next. A new predictor is a file and a line in `PREDICTORS`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moe_local.registry import Registry

if TYPE_CHECKING:
    from moe_local.prediction.base import MakePredictor

PREDICTORS: Registry[MakePredictor] = Registry(
    "predictor",
    __name__,
    {
        "router": "routers.make",
        "transitions": "transitions.make",
        "blend": "blend.make",
    },
    others=("off",),
)
