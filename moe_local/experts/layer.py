"""An MoE layer's forward pass, where a reader starts: route, fetch, multiply, sum."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from moe_local.experts.cache import ExpertCache, Ready
from moe_local.experts.prefetch import Prefetcher
from moe_local.experts.routing import RoutingHook, greatest_weights, route
from moe_local.kernels.expert import ExpertKernel


@dataclass(frozen=True)
class Paged:
    """What stands in for the parameters of one layer's experts module."""

    cache: ExpertCache
    kernel: ExpertKernel
    layer: int
    experts: int
    hook: RoutingHook | None = None
    prefetcher: Prefetcher | None = None

    def fetch(self, hidden: Tensor, experts: Sequence[int], index: Tensor, weights: Tensor) -> Iterator[Ready]:
        """`experts` as soon as they are there; see `ExpertCache.fetch`."""
        valued = greatest_weights(experts, index, weights, self.experts) if self.cache.uses_router_weights else None
        if self.prefetcher is None:
            return self.cache.fetch(self.layer, experts, valued)
        return self.cache.fetch(self.layer, experts, valued, self.prefetcher.candidates(self.layer, hidden, experts))


class ExpertLayer(nn.Module):
    """Mixed into transformers' experts classes: no parameters, and a forward pass over the expert cache."""

    has_gate = True  # the flags of transformers' decorator, for a class that keeps its interface undecorated
    has_post_expert_norm = False
    paged: Paged  # once it is connected

    def connect(self, paged: Paged) -> None:
        """From now on runs over `paged`."""
        vars(self)["paged"] = paged  # past nn.Module, which would look at it

    @torch.no_grad()
    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """hidden_states [T, H], top_k_index [T, k], top_k_weights [T, k] -> [T, H].

        Every expert sees all its tokens in one multiplication. What comes of each choice has its own place, and they
        are summed at the end in the order of the top-k: the result does not depend on the order of arrival.
        """
        paged, index, weights = self.paged, top_k_index, top_k_weights
        if paged.hook is not None:
            index, weights = paged.hook(paged.layer, index, weights)
        routing = route(hidden_states, index, paged.experts)
        for ready in paged.fetch(hidden_states, routing.experts, index, weights):
            groups = routing.groups(ready.experts)
            outputs = paged.kernel.run(ready.layout, ready.slots, hidden_states, groups, self._activate)
            routing.put(ready.experts, self._normed(outputs))
        weighted = routing.outputs() * weights.reshape(-1, 1)
        return weighted.view(*index.shape, -1).sum(dim=1).to(hidden_states.dtype)

    def _activate(self, hidden: Tensor) -> Tensor:
        """The module's own activation, with its gate if it has one."""
        module: Any = self
        activated: Tensor = module._apply_gate(hidden) if module.has_gate else module.act_fn(hidden)
        return activated

    def _normed(self, outputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """Each expert's output after the norm that some architectures have there."""
        if not self.has_post_expert_norm:
            return outputs
        module: Any = self
        return [module.post_expert_norm(output) for output in outputs]
