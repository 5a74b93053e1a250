"""An MoE layer's forward pass, where a reader starts: route, fetch, multiply, sum."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from moe_local.checkpoint.record import Layout
from moe_local.experts.beside import Beside
from moe_local.experts.buffers import ROWS_AT_ONCE, TOKENS_AT_ONCE
from moe_local.experts.cache import ExpertCache, Ready
from moe_local.experts.in_step import InStep
from moe_local.experts.misses import MissPolicy
from moe_local.experts.prefetch import Prefetcher
from moe_local.experts.routing import RoutingHook, greatest_weights, route
from moe_local.kernels.expert import ExpertKernel
from moe_local.kernels.gating import Gating, recognise
from moe_local.kernels.native_experts import NativeExperts
from moe_local.kernels.triton_experts import TritonExperts


@dataclass(frozen=True)
class Paged:
    """What stands in for the parameters of one layer's experts module."""

    cache: ExpertCache
    in_step: InStep
    kernel: ExpertKernel
    layer: int
    experts: int
    layouts: Sequence[Layout]  # that the layer's records have
    hook: RoutingHook | None = None
    prefetcher: Prefetcher | None = None
    in_ram: ExpertKernel | None = None  # of the host tier, for misses that a CPU multiplies by
    misses: MissPolicy | None = None  # who of them; None: nobody

    def fetch(
        self,
        hidden: Tensor,
        experts: Sequence[int],
        index: Tensor,
        weights: Tensor,
        admits: Callable[[int], int] | None,
    ) -> Iterator[Ready]:
        """`experts` as soon as they are there; see `ExpertCache.fetch`."""
        valued = greatest_weights(experts, index, weights, self.experts) if self.cache.uses_router_weights else None
        ahead = self.prefetcher
        candidates = tuple if ahead is None else ahead.candidates(self.layer, hidden, experts)
        return self.cache.fetch(self.layer, experts, valued, candidates, admits)


class Pass(Protocol):
    """One pass through a layer: who is chosen; what each gives, in any order of arrival; the sum of it."""

    @property
    def experts(self) -> Sequence[int]:
        """Those that are chosen, each once."""

    def put(self, layout: Layout, experts: Sequence[int], slots: Sequence[int]) -> None:
        """Multiplies by these experts, whose records of `layout` lie in `slots`."""

    def place(self, places: Tensor, outputs: Tensor) -> None:
        """Takes what others multiplied: outputs [n, H] of the choices at `places` of the flattened index, in RAM."""

    def sum(self, weights: Tensor) -> Tensor:
        """weights [T, k] -> [T, H]."""


class AllAtOnce(Protocol):
    """A layer's experts, multiplied together by whatever of them is there."""

    def start(self, hidden: Tensor, index: Tensor, experts: int) -> Pass:
        """The pass of hidden [T, H] through those of `experts` that index [T, k] names."""


class FromTable(Protocol):
    """A layer's experts, multiplied by what a table on the device says is there."""

    @property
    def reads_ram(self) -> bool:
        """Whether it reads experts in the host tier too, for one token."""

    def run(self, hidden: Tensor, index: Tensor, weights: Tensor, slots: Tensor) -> Tensor:
        """hidden [T, H], index and weights [T, k] -> [T, H]; `slots` int32 [experts] is a `DeviceTable`'s row."""


class ExpertLayer(nn.Module):
    """Mixed into transformers' experts classes: no parameters, and a forward pass over the expert cache."""

    has_gate = True  # the flags of transformers' decorator, for a class that keeps its interface undecorated
    has_post_expert_norm = False
    paged: Paged  # once it is connected
    all_at_once: AllAtOnce | None  # where kernels have all that this layer needs
    from_table: FromTable | None  # where they can do so without the host
    beside: Beside | None  # where a CPU can multiply by what is not on the device

    def connect(self, paged: Paged) -> None:
        """From now on runs over `paged`."""
        own = vars(self)  # past nn.Module, which would look at it
        if "gating" not in own:
            own["gating"] = None if self.has_post_expert_norm else recognise(self._activate, self)
        own["paged"] = paged
        kernels = own["all_at_once"] = paged.kernel.all_at_once(paged.layouts, own["gating"])
        own["from_table"] = None
        own["beside"] = _beside(paged, own["gating"])
        if not isinstance(kernels, TritonExperts) or not kernels.run_from_table:
            return
        if paged.prefetcher is None or kernels.reads_ram:  # nothing is predicted where nobody looks
            own["from_table"] = kernels
            paged.cache.keep_mirror(zero_copy=kernels.reads_ram)

    @torch.no_grad()
    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """hidden_states [T, H], top_k_index [T, k], top_k_weights [T, k] -> [T, H].

        Every expert sees all its tokens in one multiplication. What comes of each choice has its own place, and they
        are summed at the end in the order of the top-k: the result does not depend on the order of arrival.
        """
        paged, index, weights = self.paged, top_k_index, top_k_weights
        if paged.hook is not None:
            index, weights = paged.hook(paged.layer, index, weights)
        return paged.in_step.through(self, hidden_states, index, weights)

    def run(self, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        """As `forward`, of one pass's tokens or of several's."""
        paged = self.paged
        if self.from_table is not None and (slots := paged.cache.found_all(paged.layer, index)) is not None:
            return self.from_table.run(hidden, index, weights, slots)
        if self.beside is not None:
            return self._run_beside(self.beside, hidden, index, weights)
        step = self._start(hidden, index)
        for ready in paged.fetch(hidden, step.experts, index, weights, None):
            step.put(ready.layout, ready.experts, ready.slots)
        return step.sum(weights)

    def _run_beside(self, beside: Beside, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        """The same, where a CPU multiplies by some of what the device does not have."""
        cpu = beside.start(hidden, index, self.paged.experts)
        step = self._start(hidden, index)
        for ready in self.paged.fetch(hidden, step.experts, index, weights, cpu.admits):
            if ready.in_ram:
                step.place(*cpu.run(ready.layout, ready.experts, ready.slots))
            else:
                step.put(ready.layout, ready.experts, ready.slots)
        return step.sum(weights)

    def _start(self, hidden: Tensor, index: Tensor) -> Pass:
        if self.all_at_once is not None:
            return self.all_at_once.start(hidden, index, self.paged.experts)
        return OneByOne(self, hidden, index)

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


def _beside(paged: Paged, gating: Gating | None) -> Beside | None:
    if paged.in_ram is None or paged.misses is None:
        return None
    kernels = paged.in_ram.all_at_once(paged.layouts, gating)
    return Beside(kernels, paged.misses) if isinstance(kernels, NativeExperts) else None


class OneByOne:
    """A pass that multiplies by one expert after the other: for every format, device and activation."""

    def __init__(self, layer: ExpertLayer, hidden: Tensor, index: Tensor) -> None:
        self._layer = layer
        self._hidden = hidden
        self._routing = route(hidden, index, layer.paged.experts)
        self.experts = self._routing.experts

    def put(self, layout: Layout, experts: Sequence[int], slots: Sequence[int]) -> None:
        together = max(1, ROWS_AT_ONCE // len(self._hidden))  # experts, for all of which all tokens may ask
        for first in range(0, len(experts), together):
            part = slice(first, first + together)
            self._put(layout, experts[part], slots[part])

    def _put(self, layout: Layout, experts: Sequence[int], slots: Sequence[int]) -> None:
        layer, groups = self._layer, self._routing.groups(experts)
        outputs = layer.paged.kernel.run(layout, slots, self._hidden, groups, layer._activate)
        self._routing.put(experts, layer._normed(outputs))

    def place(self, places: Tensor, outputs: Tensor) -> None:
        self._routing.place(places, outputs)

    def sum(self, weights: Tensor) -> Tensor:
        parts = torch.split(self._routing.outputs().view(*weights.shape, -1), TOKENS_AT_ONCE)
        by = torch.split(weights.unsqueeze(-1), TOKENS_AT_ONCE)
        sums = [(part * weight).sum(dim=1).to(self._hidden.dtype) for part, weight in zip(parts, by, strict=True)]
        return sums[0] if len(sums) == 1 else torch.cat(sums)
