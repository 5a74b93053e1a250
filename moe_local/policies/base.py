"""What an eviction policy is: a number for each key that says what it is worth keeping."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Key = tuple[int, int]  # (layer, expert)
Keys = NDArray[np.int64]
State = NDArray[np.float64]  # [rows, keys]


class Use(Protocol):
    """`keys` were needed at time `now`, together; `weight` is what the router gave each."""

    def __call__(self, state: State, keys: Any, now: float, weight: Any) -> None: ...


class Worth(Protocol):
    """What each of `keys` is worth keeping at time `now`; the least leaves first."""

    def __call__(self, state: State, keys: Any, now: float) -> Any: ...


@dataclass(frozen=True)
class Policy:
    """Two functions over `rows` numbers a key, kept of all keys, resident or not.

    They index and calculate only, so that the same code serves an array of keys while a model runs and, compiled,
    one key at a time in a replay of millions. They see no tensor, no slot and no clock: `now` counts forward passes.
    `rows` begin as zeros; a key never needed has nothing else in them.
    """

    name: str
    rows: int
    use: Use
    worth: Worth
    weighted: bool = False  # whether `use` reads the weights
