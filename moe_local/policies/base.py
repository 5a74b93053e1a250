"""What an eviction policy is: a number for each key that says what it is worth keeping."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Key = tuple[int, int]  # (layer, expert)
Keys = NDArray[np.int64]
State = NDArray[np.float64]  # [rows, keys]


class Use(Protocol):
    """`keys` (distinct) were needed at time `now`, together; `weights` are what the router gave each."""

    def __call__(self, state: State, keys: Keys, now: float, weights: Any) -> None: ...


class Worth(Protocol):
    """What each of `keys` is worth keeping at time `now`; the least leaves first."""

    def __call__(self, state: State, keys: Any, now: float) -> Any: ...


class Look(Protocol):
    """Something must leave after `keys` were used at time `now`: prepares what `worth` will say of any key."""

    def __call__(self, state: State, keys: Keys, now: float) -> None: ...


def look_nowhere(state: State, keys: Keys, now: float) -> None:
    """For policies that need no preparation."""


@dataclass(frozen=True)
class Policy:
    """Functions over some numbers for each key, kept of all keys, resident or not.

    `use` notes what is needed; when something must leave, `look` prepares for `worth`. They index and calculate only,
    so that the same code runs in the model and, compiled by numba, in a replay of millions (`worth` with one key at a
    time). They see no tensor, no slot and no clock: `now` counts forward passes. `rows(keys)` says how many numbers
    there are for each key; they begin as zeros.
    """

    name: str
    rows: Callable[[int], int]
    use: Use
    worth: Worth
    look: Look = look_nowhere  # given the keys that are needed now
    weighted: bool = False  # whether `use` reads the weights
    layered: bool = False  # whether all keys must be of one layer
