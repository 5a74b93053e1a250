"""What an eviction policy is: a number for each key that says what it is worth keeping."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.int64]
State = NDArray[np.float64]  # [rows, keys]


class OnAccess(Protocol):
    """`keys` (distinct) were needed at time `now`, together; `weights` are what the router gave each."""

    def __call__(self, state: State, keys: Keys, now: float, weights: Any) -> None: ...


class Score(Protocol):
    """What each of `keys` is worth keeping at time `now`; the least leaves first."""

    def __call__(self, state: State, keys: Any, now: float) -> Any: ...


class Prepare(Protocol):
    """Something must leave after `keys` were used at time `now`: prepares what `score` will say of any key."""

    def __call__(self, state: State, keys: Keys, now: float) -> None: ...


def no_preparation(state: State, keys: Keys, now: float) -> None:
    """For policies that need no preparation."""


@dataclass(frozen=True)
class Policy:
    """Functions over some numbers for each key, kept of all keys, resident or not.

    `on_access` notes what is needed; when something must leave, `prepare` prepares for `score`. They index and
    calculate only, so that the same code runs in the model and, compiled by numba, in a replay of millions (`score`
    with one key at a time). They see no tensor, no slot and no clock: `now` counts forward passes. `state_rows(keys)`
    says how many numbers there are for each key; they begin as zeros.
    """

    name: str
    state_rows: Callable[[int], int]
    on_access: OnAccess
    score: Score
    prepare: Prepare = no_preparation  # given the keys that are needed now
    uses_router_weights: bool = False  # whether `on_access` reads the weights
    per_layer_only: bool = False  # whether all keys must be of one layer
