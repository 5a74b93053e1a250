"""Least recently used."""

from __future__ import annotations

from typing import Any

from moe_local.policies.base import Keys, Policy, State


def _on_access(state: State, keys: Keys, now: float, weights: Any) -> None:
    state[0, keys] = now


def _score(state: State, keys: Any, now: float) -> Any:
    return state[0, keys]


LRU = Policy("lru", lambda keys: 1, _on_access, _score)
