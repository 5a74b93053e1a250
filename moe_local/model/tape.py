"""A recording of a decoder layer's pass for one token: what it was given, what it did, and how it is done again."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import Cache

from moe_local.model.experts_calls import Experts
from moe_local.model.kv_cache import Written
from moe_local.model.recorder import Recorder, tensors


class Arguments:
    """Copies of ours of what the decoder layers are given beside the hidden state, for one recording or several."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.copies = {name: _copied(value) for name, value in given.items()}
        self._told = [name for name, held in self.copies.items() if not isinstance(held, _AnyCache)]
        self._pass = -1
        self._taken: list[Any] = []  # in that pass, but for the cache: nothing here keeps one

    def take(self, given: dict[str, Any], number: int) -> bool:
        """Puts what is given in forward pass `number` into the copies. False if it is not of the recorded kind."""
        if self.are_of(given, number):
            return True
        if given.keys() != self.copies.keys():
            return False
        if not all(_alike(given[name], held) for name, held in self.copies.items()):
            return False
        for name, held in self.copies.items():
            for copy, new in zip(tensors(held), tensors(given[name]), strict=True):
                copy.copy_(new)
        self._pass, self._taken = number, [given[name] for name in self._told]
        return True

    def are_of(self, given: dict[str, Any], number: int) -> bool:
        """Whether these are what was taken last, in forward pass `number`."""
        if self._pass != number or given.keys() != self.copies.keys():
            return False
        return all(given[name] is taken for name, taken in zip(self._told, self._taken, strict=True))


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, tuple) and all(isinstance(each, Tensor) for each in value):
        return tuple(each.clone() for each in value)
    return _AnyCache(type(value)) if isinstance(value, Cache) else value


class Tape:
    """A layer's pass for one token, to be done again."""

    place: int  # among the model's caches, of the layer's

    def __init__(self, recorder: Recorder, hidden: Tensor, arguments: Arguments, output: Any) -> None:
        """What is in `recorder`, on `hidden`, ours, and `arguments`, gave `output`; to be bound first."""
        self.steps = recorder.steps
        self.output = output
        self._recorder = recorder
        self._hidden = hidden
        self._arguments = arguments
        self._mode = _mode()
        self._tokens = 0

    def bind(self, place: int, before: Written, memory: set[int]) -> bool:
        """Tells which cache the pass has written into, how it was `before`, and the memory that it lies in now.

        False if the pass cannot be done again over another cache. None of the memory is kept.
        """
        self.place, self._tokens = place, before.tokens
        return self._recorder.bind(before.keys, before.values, before.room, memory)

    def take(self, hidden: Tensor, more: dict[str, Any], number: int) -> bool:
        """Puts these in the place of the recorded arguments. False where they, or what else matters, differ."""
        if self._mode != _mode() or hidden.shape != self._hidden.shape or not self._arguments.take(more, number):
            return False
        if hidden is not self._hidden:
            self._hidden.copy_(hidden)
        return True

    def play(self, written: Written) -> None:
        """All of it."""
        where = self._where(written)
        for step in self.steps:
            step(*where)

    def play_dense(self, first: int, written: Written) -> int:
        """From step `first` up to the next call of the experts; its number, or how many steps there are."""
        where = self._where(written)
        for number in range(first, len(self.steps)):
            if isinstance(self.steps[number], Experts):
                return number
            self.steps[number](*where)
        return len(self.steps)

    def _where(self, written: Written) -> tuple[int, int, int, int]:
        return written.tokens - self._tokens, written.keys, written.values, written.room


def _mode() -> tuple[bool, int]:
    return torch.is_inference_mode_enabled(), torch.get_num_threads()


def _alike(given: Any, held: Any) -> bool:
    """Whether an argument is of the kind of the recorded one, or else the same."""
    if isinstance(held, Tensor):
        return isinstance(given, Tensor) and given.shape == held.shape and given.dtype is held.dtype
    if isinstance(held, _AnyCache):
        return type(given) is held.kind
    if isinstance(held, tuple):
        return isinstance(given, tuple) and len(given) == len(held) and all(map(_alike, given, held))
    if held is None or isinstance(held, (bool, int, float, str)):
        return type(given) is type(held) and bool(given == held)
    return given is held


class _AnyCache(NamedTuple):
    """Stands for the KV cache among the recorded arguments: which one it is shows elsewhere."""

    kind: type[Any]
