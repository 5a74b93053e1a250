"""LFRU's worth, times how often an expert was chosen by the token after one that chose what this token did.

The next token's experts follow from this one's more than chance: counts of pairs, learned while the model runs, say
which. Of passes of many tokens nothing is learned: they need nearly all experts.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from moe_local.policies.base import Keys, Policy, State

HALF_LIFE = 24.0  # forward passes after which a use counts half: shorter than LFRU's, the pairs remember longer
_USES, _LAST, _FOLLOWED, _COUNT, _PAIRS = range(5)  # rows; from _PAIRS on, one for each key
_DOUBT = 0.5  # of a pair that was not seen yet


def _on_access(state: State, keys: Keys, now: float, weights: Any) -> None:
    experts = state.shape[1]
    previous = np.flatnonzero(state[_LAST] == now - 1)
    state[_USES, keys] = state[_USES, keys] * np.exp2((state[_LAST, keys] - now) / HALF_LIFE) + 1
    state[_LAST, keys] = now
    if 2 * max(len(keys), len(previous)) > experts:
        return
    for key in previous:
        state[_COUNT, key] += 1
        state[_PAIRS + key, keys] += 1


def _prepare(state: State, keys: Keys, now: float) -> None:
    experts = state.shape[1]
    state[_FOLLOWED] = 0
    for key in keys:
        state[_FOLLOWED] += (state[_PAIRS + key] + _DOUBT) / (state[_COUNT, key] + _DOUBT * experts / len(keys))


def _score(state: State, keys: Any, now: float) -> Any:
    age = now - state[_LAST, keys]
    return state[_USES, keys] * np.exp2(-age / HALF_LIFE) / np.sqrt(age + 1) * (state[_FOLLOWED, keys] + 1e-9)


SUCCESSOR = Policy("successor", lambda keys: _PAIRS + keys, _on_access, _score, _prepare, per_layer_only=True)
