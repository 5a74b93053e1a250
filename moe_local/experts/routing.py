"""Which expert each token goes to: who sees it, who changes it, and the tokens of each expert side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from moe_local.experts.in_step import lane


class RoutingHook(Protocol):
    """Sees the routing of each forward pass, index and weights [T, k], and may put another in its place."""

    def __call__(self, layer: int, index: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]: ...


def in_turn(*hooks: RoutingHook) -> RoutingHook:
    """Several hooks as one: each sees what those before it gave."""

    def see(layer: int, index: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        for hook in hooks:
            index, weights = hook(layer, index, weights)
        return index, weights

    return hooks[0] if len(hooks) == 1 else see


class PaddingMask:
    """A routing hook that takes the padding of a batch out: no expert is read or computed for it."""

    def __init__(self, experts: Sequence[int]) -> None:
        """`experts` of each layer, which is also the index that stands for none."""
        self._experts = experts
        self._padded: dict[int, Tensor | None] = {}  # of each lane

    def hide(self, there: Tensor | None) -> None:
        """Which of the tokens of the next forward passes are there, [T] bool; None for all."""
        self._padded[lane()] = None if there is None else ~there[:, None]

    def __call__(self, layer: int, index: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        padded = self._padded.get(lane())
        if padded is None or len(padded) != len(index):
            return index, weights
        return index.masked_fill(padded, self._experts[layer]), weights


class Routing(Protocol):
    """The choices of a layer's router for some tokens, by expert, and what comes of each choice."""

    @property
    def experts(self) -> Sequence[int]:
        """Those that are chosen, each once."""

    def groups(self, experts: Sequence[int]) -> Sequence[Tensor] | None:
        """The tokens that each of `experts` sees, int64 [rows]; None where each sees all there are."""

    def put(self, experts: Sequence[int], outputs: Sequence[Tensor]) -> None:
        """Takes the outputs of some experts, in any order of arrival: for each [rows, H]."""

    def place(self, places: Tensor, outputs: Tensor) -> None:
        """Takes outputs [n, H] of the choices at `places` in the flattened index, int64 [n] in RAM."""

    def outputs(self) -> Tensor:
        """All outputs in the order of the choices, [T * k, H]; zeros for a choice of no expert."""


def route(hidden: Tensor, index: Tensor, experts: int) -> Routing:
    """The routing of hidden [T, H] by index [T, k], where `experts` or more stands for no expert."""
    return OneToken(hidden, index, experts) if len(index) == 1 else ManyTokens(hidden, index, experts)


class OneToken:
    """The routing of one token: every expert sees it, and there is nothing to group."""

    def __init__(self, hidden: Tensor, index: Tensor, experts: int) -> None:
        self._hidden = hidden
        self._chosen: list[int] = index[0].tolist()
        self.experts = [expert for expert in dict.fromkeys(self._chosen) if expert < experts]
        self._outputs: dict[int, Tensor] = {}

    def groups(self, experts: Sequence[int]) -> None:
        return None

    def put(self, experts: Sequence[int], outputs: Sequence[Tensor]) -> None:
        self._outputs.update(zip(experts, outputs, strict=True))

    def place(self, places: Tensor, outputs: Tensor) -> None:
        self.put([self._chosen[place] for place in places.tolist()], torch.split(outputs, 1))

    def outputs(self) -> Tensor:
        found = self._outputs
        return torch.cat([found[e] if e in found else torch.zeros_like(self._hidden) for e in self._chosen])


class ManyTokens:
    """The routing of several tokens: each expert sees all of its own in one multiplication."""

    def __init__(self, hidden: Tensor, index: Tensor, experts: int) -> None:
        tokens, self._k = index.shape
        self._places = places_by_expert(index, experts)
        self.experts = list(self._places)
        self._outputs = hidden.new_zeros(tokens * self._k, hidden.shape[-1])

    def groups(self, experts: Sequence[int]) -> Sequence[Tensor]:
        return [self._places[expert] // self._k for expert in experts]

    def put(self, experts: Sequence[int], outputs: Sequence[Tensor]) -> None:
        for expert, output in zip(experts, outputs, strict=True):
            self._outputs[self._places[expert]] = output

    def place(self, places: Tensor, outputs: Tensor) -> None:
        self._outputs[places.to(outputs.device)] = outputs.to(self._outputs.dtype)

    def outputs(self) -> Tensor:
        return self._outputs


def places_by_expert(index: Tensor, experts: int) -> dict[int, Tensor]:
    """Places in the flattened index [T, k] of each expert that is chosen, by expert, ascending.

    An index of `experts` or more is a sentinel: it stands for no expert and is left out.
    """
    flat = index.reshape(-1)
    order = flat.argsort(stable=True)
    counts = flat.bincount(minlength=experts)[:experts].tolist()
    places: dict[int, Tensor] = {}
    start = 0
    for expert, count in enumerate(counts):
        if count:
            places[expert] = order[start : start + count]
        start += count
    return places


def greatest_weights(experts: Sequence[int], index: Tensor, weights: Tensor, count: int) -> list[float]:
    """The greatest weight that any token gives each of `experts`; index and weights [T, k], `count` of the layer."""
    most = weights.new_zeros(count + 1)
    places = index.clamp(max=count).flatten().long()
    most.scatter_reduce_(0, places, weights.flatten(), "amax")
    return [float(weight) for weight in most[list(experts)].tolist()]
