"""Frequency and recency: fading uses, over the root of the time since the last one."""

from __future__ import annotations

from typing import Any

import numpy as np

from moe_local.policies.base import Keys, Policy, State

HALF_LIFE = 48.0  # forward passes after which a use counts half


def _on_access(state: State, keys: Keys, now: float, weights: Any) -> None:
    state[0, keys] = state[0, keys] * np.exp2((state[1, keys] - now) / HALF_LIFE) + 1
    state[1, keys] = now


def _score(state: State, keys: Any, now: float) -> Any:
    age = now - state[1, keys]
    return state[0, keys] * np.exp2(-age / HALF_LIFE) / np.sqrt(age + 1)


LFRU = Policy("lfru", lambda keys: 2, _on_access, _score)
