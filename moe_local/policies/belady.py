"""Belady's optimum: what is needed again latest leaves first. Only a replay knows the future.

https://doi.org/10.1147/sj.52.0078. In place of the routers' weights, `on_access` is given when each key is needed
next.
"""

from __future__ import annotations

from typing import Any

from moe_local.policies.base import Keys, Policy, State


def _on_access(state: State, keys: Keys, now: float, weights: Any) -> None:
    state[0, keys] = -weights


def _score(state: State, keys: Any, now: float) -> Any:
    return state[0, keys]


BELADY = Policy("belady", lambda keys: 1, _on_access, _score, uses_router_weights=True)
