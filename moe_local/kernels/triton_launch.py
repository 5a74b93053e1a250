"""Launching Triton kernels again and again without their being looked up by every argument. Needs no triton."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

Number = int | float


class Launcher:
    """A kernel with its numbers and what is compiled into it; tensors and the grid are given at each launch.

    What the first launch compiles, triton finds again by all arguments, which takes three times as long as to launch
    it. Which variant it is depends on the tensors' types and alignment only, so that it is kept by these.
    """

    def __init__(self, kernel: Any, numbers: Sequence[Number], compiled: Mapping[str, Any]) -> None:
        """`kernel` takes tensors, then `numbers`, then what is `compiled` in; options for triton are in there too."""
        self._kernel = kernel
        self._numbers = tuple(numbers)
        self._compiled = dict(compiled)
        constants = [compiled[name] for name in kernel.arg_names if name in compiled]
        self._rest = (*self._numbers, *constants)
        self._known: dict[tuple[object, ...], Any] = {}

    def __call__(self, rows: int, columns: int, *tensors: Tensor | None) -> None:
        """Launches rows * columns programs on the current device, which is the tensors'."""
        key = tuple([None if each is None else (each.dtype, each.data_ptr() & 15) for each in tensors])
        known = self._known.get((tensors[0].device, key))  # type: ignore[union-attr]
        if known is not None:
            known[rows, columns, 1](*tensors, *self._rest)
            return
        found = self._kernel[rows, columns](*tensors, *self._numbers, **self._compiled)
        if found is not None:  # an interpreter has nothing to keep
            self._known[tensors[0].device, key] = found  # type: ignore[union-attr]


def launcher(kept: dict[object, Launcher], key: object, make: Callable[[], Launcher]) -> Launcher:
    """The launcher that is kept under a key, made the first time."""
    found = kept.get(key)
    if found is None:
        found = kept[key] = make()
    return found
