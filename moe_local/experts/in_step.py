"""Forward passes in step: several go through a model layer by layer, and each expert is brought in once for all.

A pass over a prompt needs most of a layer's experts; who decodes meanwhile has its own among them for nothing. Passes
keep their own KV caches and attend by themselves. At a layer's experts each waits for the others: their tokens are
routed and multiplied together, as if they were one pass's.

They take turns in one thread (greenlets), as torch keeps settings, and OpenMP its threads, for each thread.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from greenlet import GreenletExit, getcurrent, greenlet
from torch import Tensor

R = TypeVar("R")
_LANE: ContextVar[int] = ContextVar("lane", default=0)


def lane() -> int:
    """Which of the passes in step this one is, from 1 on; 0 for one by itself."""
    return _LANE.get()


class Layer(Protocol):
    """A layer's experts."""

    def run(self, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        """hidden [T, H], index and weights [T, k] -> [T, H]."""


@dataclass(frozen=True)
class _Arrival:
    """What a pass has for a layer's experts."""

    layer: Layer
    hidden: Tensor
    index: Tensor
    weights: Tensor


def attempted(work: Callable[[], R]) -> R | Exception:
    """What it gives, or the error that it ended with."""
    try:
        return work()
    except Exception as error:
        return error


def done(found: R | Exception) -> R:
    """What was given. Raises the error that it is instead."""
    if isinstance(found, Exception):
        raise found
    return found


class InStep:
    """The passes that are in step through one model, if any."""

    def __init__(self) -> None:
        self._hub: greenlet | None = None  # who runs them
        self._tokens: dict[int, int] = {}  # of the forward pass of each lane

    def tokens(self, count: int) -> int:
        """A forward pass of so many tokens begins -> tokens of all that are in step with it."""
        if self._hub is None:
            return count
        self._tokens[lane()] = count
        return sum(self._tokens.values())

    @torch.inference_mode()  # around all of them: what one sets torch back to at its end holds for the others
    def run(self, passes: Sequence[Callable[[], R]]) -> list[R | Exception]:
        """What each gives, or the error that it ended with; one that struck what they have in common is of all.

        Each calls the model once or several times. Raises what is no Exception, like KeyboardInterrupt, once all
        passes have ended.
        """
        ended: dict[int, R | Exception] = {}

        def attempt(number: int, each: Callable[[], R]) -> None:
            _LANE.set(number + 1)
            ended[number] = attempted(each)
            self._tokens.pop(number + 1, None)

        lanes = [greenlet(attempt) for _ in passes]
        self._hub = getcurrent()
        try:
            arrived = {}
            for number, (each, one) in enumerate(zip(lanes, passes, strict=True)):
                each.gr_context = contextvars.copy_context()
                arrived[each] = each.switch(number, one)
            self._meet({each: found for each, found in arrived.items() if not each.dead})
        finally:
            self._hub = None
            self._tokens.clear()
            for each in lanes:
                if not each.dead:
                    each.throw(GreenletExit)
        return [ended[number] for number in range(len(passes))]

    def _meet(self, arrived: dict[greenlet, _Arrival]) -> None:
        """Has passes go on from layer to layer until all have ended."""
        while arrived:
            layer = next(iter(arrived.values())).layer
            here = [each for each, found in arrived.items() if found.layer is layer]
            outputs, failed = _together([arrived.pop(each) for each in here])
            for each in here:
                found = each.throw(failed) if failed is not None else each.switch(outputs.pop(0))
                if not each.dead:
                    arrived[each] = found

    def through(self, layer: Layer, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        """A layer's experts for a pass, hidden [T, H], index and weights [T, k] -> [T, H]; with those in step."""
        if self._hub is None or not lane():
            return layer.run(hidden, index, weights)
        outputs: Tensor = self._hub.switch(_Arrival(layer, hidden, index, weights))
        return outputs


def _together(arrived: Sequence[_Arrival]) -> tuple[list[Tensor], Exception | None]:
    """The outputs for each, [T, H]; or why there are none."""
    hidden = torch.cat([each.hidden for each in arrived])
    index = torch.cat([each.index for each in arrived])
    weights = torch.cat([each.weights for each in arrived])
    try:
        outputs: Any = arrived[0].layer.run(hidden, index, weights)
        return list(outputs.split([len(each.hidden) for each in arrived])), None
    except Exception as error:
        return [], error
