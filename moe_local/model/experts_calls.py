"""Who calls the experts in a model's forward pass, for those that do them apart from the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from moe_local.experts.layer import ExpertLayer

Call = Callable[[Callable[..., Tensor], tuple[Any, ...]], Tensor]  # a layer's forward pass, its arguments -> result


@dataclass(frozen=True, slots=True)
class Experts:
    """A call of the experts, to be made again: what they give goes to where it went before."""

    forward: Callable[..., Tensor]
    given: tuple[Any, ...]
    result: Tensor

    def __call__(self, *_: int) -> None:
        self.result.copy_(self.forward(*self.given))


@contextmanager
def experts_called_by(call: Call, layers: Iterable[ExpertLayer]) -> Iterator[None]:
    """While inside, `call` is given these layers' forward passes and their arguments, and says what they return."""
    layers = list(layers)
    for layer in layers:
        vars(layer)["forward"] = lambda *given, _forward=layer.forward: call(_forward, given)
    try:
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)
