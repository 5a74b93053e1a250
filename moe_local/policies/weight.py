"""Fading sums of the router's weights: an expert that is chosen with little conviction is kept for less long."""

from __future__ import annotations

from typing import Any

import numpy as np

from moe_local.policies.base import Keys, Policy, State
from moe_local.policies.lfu import HALF_LIFE, LFU


def _on_access(state: State, keys: Keys, now: float, weights: Any) -> None:
    state[0, keys] = state[0, keys] * np.exp2((state[1, keys] - now) / HALF_LIFE) + weights
    state[1, keys] = now


WEIGHT = Policy("weight", lambda keys: 2, _on_access, LFU.score, uses_router_weights=True)
