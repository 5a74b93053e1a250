"""The experts' forward pass: tokens grouped by expert, each expert multiplied once, when it is there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from moe_local.experts.cache import ExpertCache
from moe_local.experts.prefetch import Prefetcher
from moe_local.formats import Expert


class PagedExperts(nn.Module):
    """Mixed into transformers' experts classes: no parameters, and a forward pass over the expert cache."""

    has_gate = True  # the flags of transformers' decorator, for a class that keeps its interface undecorated
    has_post_expert_norm = False
    paged: Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """hidden_states [T, H], top_k_index [T, k], top_k_weights [T, k] -> [T, H]."""
        return self.paged(self, hidden_states, top_k_index, top_k_weights)


class RoutingHook(Protocol):
    """Sees the routing of each forward pass, index and weights [T, k], and may put another in its place."""

    def __call__(self, layer: int, index: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]: ...


class PaddingMask:
    """A tap that takes the padding of a batch out: no expert is read or computed for it."""

    def __init__(self, experts: Sequence[int]) -> None:
        self._experts = experts
        self._padded: Tensor | None = None

    def hide(self, there: Tensor | None) -> None:
        """Which of the tokens of the next forward passes are there, [T] bool; None for all."""
        self._padded = None if there is None else ~there[:, None]

    def __call__(self, layer: int, index: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        if self._padded is None or len(self._padded) != len(index):
            return index, weights
        return index.masked_fill(self._padded, self._experts[layer]), weights


class PagedLayer:
    """One layer's experts over the cache."""

    def __init__(
        self,
        cache: ExpertCache,
        layer: int,
        experts: int,
        tap: RoutingHook | None = None,
        prefetcher: Prefetcher | None = None,
    ) -> None:
        self._cache = cache
        self._layer = layer
        self._experts = experts
        self._tap = tap
        self._prefetcher = prefetcher

    @torch.no_grad()
    def __call__(self, module: nn.Module, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        """As `PagedExperts.forward`.

        Every expert sees all its tokens in one multiplication and leaves its rows in their own place, which are
        summed at the end in the order of the top-k: the result does not depend on the order of arrival.
        """
        if self._tap is not None:
            index, weights = self._tap(self._layer, index, weights)
        tokens, k = index.shape
        run = self._one if tokens == 1 else self._many
        rows = run(module, hidden, index, weights)
        weighted = rows * weights.reshape(-1, 1)
        return weighted.view(tokens, k, -1).sum(dim=1).to(hidden.dtype)

    def _one(self, module: nn.Module, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        """hidden [1, H], index and weights [1, k] -> [k, H], a row for each choice."""
        chosen = index[0].tolist()
        experts = [expert for expert in dict.fromkeys(chosen) if expert < self._experts]
        outputs: dict[int, Tensor] = {}
        for ready in self._fetch(hidden, experts, index, weights):
            found = run_experts(module, [weight for _, weight in ready], [hidden] * len(ready))
            outputs.update(zip([expert for expert, _ in ready], found, strict=True))
        return torch.cat([outputs[e] if e in outputs else torch.zeros_like(hidden) for e in chosen])

    def _many(self, module: nn.Module, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        """hidden [T, H], index and weights [T, k] -> [T * k, H], a row for each token and choice."""
        tokens, k = index.shape
        groups = group_by_expert(index, self._experts)
        rows = hidden.new_zeros(tokens * k, hidden.shape[-1])
        experts = list(groups)
        for ready in self._fetch(hidden, experts, index, weights):
            places = [groups[expert] for expert, _ in ready]
            outputs = run_experts(module, [weight for _, weight in ready], [hidden[at // k] for at in places])
            for at, output in zip(places, outputs, strict=True):
                rows[at] = output
        return rows

    def _fetch(
        self, hidden: Tensor, experts: Sequence[int], index: Tensor, weights: Tensor
    ) -> Iterator[list[tuple[int, Expert]]]:
        valued = self._valued(experts, index, weights)
        if self._prefetcher is None:
            return self._cache.fetch(self._layer, experts, valued)
        ahead = self._prefetcher.ahead(self._layer, hidden, experts)
        return self._cache.fetch(self._layer, experts, valued, ahead)

    def _valued(self, experts: Sequence[int], index: Tensor, weights: Tensor) -> list[float] | None:
        """The greatest weight that any token gives each of `experts`, if the cache's policy looks at it."""
        if not self._cache.weighted:
            return None
        most = weights.new_zeros(self._experts + 1)
        places = index.clamp(max=self._experts).flatten().long()
        most.scatter_reduce_(0, places, weights.flatten(), "amax")
        return [float(weight) for weight in most[list(experts)].tolist()]


def run_experts(module: Any, experts: Sequence[Expert], inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    """Each expert on its own tokens, [rows, hidden] -> [rows, hidden], unweighted.

    `module` is transformers' experts module: its activation, gate and norm are used as they are, on all rows at once.
    """
    counts = [len(x) for x in inputs]
    hidden = _joined([expert.up(x) for expert, x in zip(experts, inputs, strict=True)])
    hidden = module._apply_gate(hidden) if module.has_gate else module.act_fn(hidden)
    parts = [hidden] if len(counts) == 1 else hidden.split(counts)
    outputs = [expert.down(part) for expert, part in zip(experts, parts, strict=True)]
    return [module.post_expert_norm(out) for out in outputs] if module.has_post_expert_norm else outputs


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))


def group_by_expert(index: Tensor, experts: int) -> dict[int, Tensor]:
    """Places in the flattened index [T, k] of each expert that is chosen, by expert, ascending.

    An index of `experts` or more is a sentinel: it stands for no expert and is left out.
    """
    flat = index.reshape(-1)
    order = flat.argsort(stable=True)
    counts = flat.bincount(minlength=experts)[:experts].tolist()
    groups: dict[int, Tensor] = {}
    start = 0
    for expert, count in enumerate(counts):
        if count:
            groups[expert] = order[start : start + count]
        start += count
    return groups
