"""One tier: memory cut into slots, which expert lies in which, and what is kept of each layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from moe_local.experts.capacity import TierCapacity
from moe_local.experts.residency import Decision, LayerResidency, SlotTable
from moe_local.memory.slab import Slab
from moe_local.policies.base import Policy


@dataclass(frozen=True)
class Tier:
    """A slab, the slot of each key that has one, and the residency of each layer."""

    slab: Slab
    slots: SlotTable
    layers: Sequence[LayerResidency]
    uses_router_weights: bool

    @classmethod
    def make(cls, slab: Slab, experts: Sequence[int], capacities: Sequence[int], policy: Policy) -> Tier:
        """`experts` of each layer, of which `capacities` are kept; the rest of the slab's slots are spare."""
        layers = [LayerResidency(count, most, policy) for count, most in zip(experts, capacities, strict=True)]
        return cls(slab, SlotTable(len(slab), len(layers)), layers, policy.uses_router_weights)

    def access(
        self,
        layer: int,
        experts: Sequence[int],
        weights: Sequence[float] | None,
        admits: Callable[[int], int] | None = None,
    ) -> Decision:
        """As `LayerResidency.access`; slots of residents that are evicted and not needed fall free."""
        decision = self.layers[layer].access(experts, weights, admits)
        for expert in decision.evicted.difference(experts):
            self.slots.free((layer, expert))
        return decision

    def resize(self, capacity: TierCapacity) -> None:
        """Keeps as much of each layer from now on, in the first slots of the slab; the memory of the others goes back
        to the system. Nothing may be moving. Host memory only.
        """
        self.slots.retain(self.layers)
        if capacity.slots > self.slots.limit:  # first: at no moment more is kept than there are slots for
            self.slots.shrink(capacity.slots)
        for number, (layer, kept) in enumerate(zip(self.layers, capacity.kept, strict=True)):
            for expert in layer.resize(kept):
                self.slots.free((number, expert))
        for source, target in self.slots.shrink(capacity.slots):
            self.slab.copy(source, target)
        self.slab.release(capacity.slots)

    def best(self, kept: Sequence[int]) -> list[list[int]]:
        """Of each layer as many as `kept` says of the experts that are kept: those that the policy values most."""
        for layer, most in zip(self.layers, kept, strict=True):
            layer.resize(most)
        return [list(layer) for layer in self.layers]

    def empty(self, layer: int) -> None:
        """Forgets a layer, and whatever lies in slots that no layer keeps."""
        self.layers[layer].clear()
        self.slots.retain(self.layers)
