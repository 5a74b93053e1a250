"""Multiplying by a layer's experts where they lie in the host tier: a CPU does it while the device goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from moe_local.checkpoint.record import Layout
from moe_local.experts.misses import MissPolicy
from moe_local.kernels.native_experts import NativeExperts


@dataclass(frozen=True)
class Beside:
    """A layer's experts in the host tier, by the native kernels, and who of them is multiplied by there."""

    kernels: NativeExperts
    policy: MissPolicy

    def start(self, hidden: Tensor, index: Tensor, experts: int) -> BesidePass:
        """A pass of hidden [T, H] through those of `experts` that index [T, k] names; waits for both."""
        return BesidePass(self, hidden, index, experts)


class BesidePass:
    """One pass: inputs are brought down before the device is given anything else to do, or they would wait for it."""

    def __init__(self, owner: Beside, hidden: Tensor, index: Tensor, experts: int) -> None:
        self._device = hidden.device
        self._policy = owner.policy
        self._index = index.to("cpu").view(-1)
        self._step = owner.kernels.start(hidden.to("cpu"), self._index.view(index.shape), experts)

    def admits(self, misses: int) -> int:
        """How many of so many misses are to come to the device."""
        return self._policy.uploads(misses, len(self._index) / max(1, len(self._step.experts)))

    def run(self, layout: Layout, experts: Sequence[int], slots: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Multiplies by the experts of `layout` in these slots of the host tier.

        -> the places of their choices in the flattened index, int64 [n] in RAM, and what came of each, [n, H] on the
        device.
        """
        self._step.put(layout, experts, slots)
        places = torch.isin(self._index, torch.tensor(experts, dtype=self._index.dtype)).nonzero().view(-1)
        return places, self._step.outputs[places].to(self._device, non_blocking=True)
