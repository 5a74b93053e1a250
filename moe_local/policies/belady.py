"""Belady's optimum: what is needed again latest leaves first. Only a replay knows the future.

https://doi.org/10.1147/sj.52.0078. In place of the router's weight, `use` is given when each key is needed next.
"""

from __future__ import annotations

from typing import Any

from moe_local.policies.base import Policy, State


def _use(state: State, keys: Any, now: float, weight: Any) -> None:
    state[0, keys] = -weight


def _worth(state: State, keys: Any, now: float) -> Any:
    return state[0, keys]


BELADY = Policy("belady", 1, _use, _worth, weighted=True)
