"""How literature routes tokens to experts, each a file: what they would make of a model's router scores."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moe_local.registry import Registry

if TYPE_CHECKING:
    from moe_local.bench.strategies.base import Strategy

STRATEGIES: Registry[Strategy] = Registry(
    "routing strategy",
    __name__,
    {
        "top-k": "top_k.TOP_K",
        "noisy": "noisy.NOISY",
        "gshard": "gshard.GSHARD",
        "switch": "switch.SWITCH",
        "hash": "hashed.HASH",
        "bias": "bias.BIAS",
        "base": "base_layers.BASE",
        "expert-choice": "expert_choice.EXPERT_CHOICE",
    },
    others=["all"],
)
