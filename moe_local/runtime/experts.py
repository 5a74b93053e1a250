"""The experts' forward pass: tokens grouped by expert, each expert multiplied once, when it is there."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from moe_local.runtime.cache import ExpertCache

Groups = dict[int, list[int] | Tensor]


class PagedExperts(nn.Module):
    """Mixed into transformers' experts classes: no parameters, and a forward pass over the expert cache."""

    has_gate = True  # the flags of transformers' decorator, for a class that keeps its interface undecorated
    has_post_expert_norm = False
    paged: Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """hidden_states [T, H], top_k_index [T, k], top_k_weights [T, k] -> [T, H]."""
        return self.paged(self, hidden_states, top_k_index, top_k_weights)


class PagedLayer:
    """One layer's experts over the cache."""

    def __init__(self, cache: ExpertCache, layer: int, experts: int) -> None:
        self._cache = cache
        self._layer = layer
        self._experts = experts

    @torch.no_grad()
    def __call__(self, module: nn.Module, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        """As `PagedExperts.forward`.

        Every expert sees all its tokens in one multiplication and leaves its rows in their own place, which are
        summed at the end in the order of the top-k: the result does not depend on the order of arrival.
        """
        tokens, k = index.shape
        groups = group_by_expert(index, self._experts)
        rows = hidden.new_zeros(tokens * k, hidden.shape[-1])  # [T * k, H] one for each token and choice
        for expert, weight in self._cache.fetch(self._layer, list(groups)):
            at = groups[expert]
            inputs = hidden if tokens == 1 else hidden[_tokens_of(at, k)]
            rows[at] = weight(module, inputs)
        weighted = rows * weights.reshape(-1, 1)
        return weighted.view(tokens, k, -1).sum(dim=1).to(hidden.dtype)


def group_by_expert(index: Tensor, experts: int) -> Groups:
    """Places in the flattened index [T, k] of each expert that is chosen, by expert, ascending.

    An index of `experts` or more is a sentinel: it stands for no expert and is left out.
    """
    if index.shape[0] == 1:
        chosen: dict[int, list[int]] = {}
        for place, expert in enumerate(index[0].tolist()):
            if expert < experts:
                chosen.setdefault(expert, []).append(place)
        return {expert: chosen[expert] for expert in sorted(chosen)}
    flat = index.reshape(-1)
    order = flat.argsort(stable=True)
    counts = flat.bincount(minlength=experts)[:experts].tolist()
    groups: Groups = {}
    start = 0
    for expert, count in enumerate(counts):
        if count:
            groups[expert] = order[start : start + count]
        start += count
    return groups


def _tokens_of(places: list[int] | Tensor, k: int) -> Tensor:
    return torch.as_tensor(places) // k
