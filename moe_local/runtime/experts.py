"""The experts' forward pass: tokens grouped by expert, each expert multiplied once, when it is there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_local.runtime.cache import ExpertCache

Groups = dict[int, Any]  # expert -> places: a list for one token, else a tensor


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
            inputs = hidden if tokens == 1 else hidden[padded(at // k)]
            rows[at] = weight(module, inputs)[: len(at)]
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


def padded(tokens: Tensor) -> Tensor:
    """Token numbers [n] with token 0 added to the end until there is one of a few round counts.

    A CPU's matrix library makes and keeps a program for every number of rows it meets: hundreds of megabytes for
    the counts that routing gives. Rounded up, there are a dozen.
    """
    count = len(tokens)
    if tokens.device.type != "cpu":
        return tokens
    step = 1 << max(0, count.bit_length() - 2)  # 1, 2, 3, 4, 6, 8, 12, 16, 24 ...: never half too many
    return F.pad(tokens, (0, -count % step))
