"""Triton's kernels for experts on a pretend device, where Triton has nothing to compile for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from unittest import mock

from torch import Tensor

from moe_local.checkpoint.record import Layout
from moe_local.experts.device_table import NOWHERE, in_ram
from moe_local.experts.routing import route
from moe_local.kernels import expert
from moe_local.kernels.expert import ExpertKernel
from moe_local.kernels.gating import Gating, activation_of
from moe_local.kernels.triton_experts import TritonExperts
from moe_local.memory.slab import Slab
from moe_local.testing.pretend_memory import Gpu
from moe_local.testing.pretend_tensor import PretendTensor, launch


class _Numbers(Slab):
    """The bytes of a pretend device's slab, in the RAM that they really lie in."""

    def __init__(self, slab: Slab) -> None:
        self._buffers, self._each = [numbers(slab.memory_of_all)], max(1, len(slab))


class PretendTriton(TritonExperts):
    """Launches as often as the kernels do, reads what they read, and decodes what they would multiply by."""

    def __init__(self, slab: Slab, layout: Layout, gating: Gating, below: Slab | None) -> None:
        super().__init__(slab, {}, below)
        self.in_ram = None if below is None else ExpertKernel(below, exact=True)
        self.layout = layout
        self.activate = activation_of(gating)
        self.kernel = ExpertKernel(_Numbers(slab), exact=True)
        self.records = slab.memory_of_all

    @property
    def run_from_table(self) -> bool:
        return True

    def start(self, hidden: Tensor, index: Tensor, experts: int) -> PretendPass:  # type: ignore[override]
        index.tolist()  # as the kernels' own pass waits for it
        return PretendPass(self, hidden, index, experts)

    def run(self, hidden: Tensor, index: Tensor, weights: Tensor, slots: Tensor) -> Tensor:
        started = PretendPass(self, hidden, index, len(slots), slots)
        table = numbers(slots).tolist()
        there = [each for each in started.experts if table[each] >= 0]
        started.put(self.layout, there, [table[each] for each in there])
        if below := [each for each in started.experts if table[each] < NOWHERE]:
            assert len(index) == 1 and self._below is not None and self._below.is_pinned
            started.read(self.layout, below, [in_ram(table[each]) for each in below])
        return started.sum(weights)


class PretendPass:
    """A pass of `PretendTriton`'s."""

    def __init__(self, owner: PretendTriton, hidden: Tensor, index: Tensor, experts: int, *read: Tensor) -> None:
        self._owner = owner
        self._read = (index, *read)  # by each kernel
        self._x = numbers(hidden)
        self._gpu: Gpu = hidden.gpu  # type: ignore[attr-defined]
        self._routing = route(self._x, numbers(index), experts)
        self.experts = self._routing.experts

    def put(self, layout: Layout, experts: Sequence[int], slots: Sequence[int]) -> None:
        own = self._owner
        for name in ("up", "down"):
            launch(self._gpu, name, [*self._read, own.records])
        if experts:
            self._multiply(own.kernel, layout, experts, slots)

    def read(self, layout: Layout, experts: Sequence[int], slots: Sequence[int]) -> None:
        """Multiplies by experts in page-locked RAM, in the same launches as by the others."""
        assert self._owner.in_ram is not None
        self._multiply(self._owner.in_ram, layout, experts, slots)

    def _multiply(self, kernel: ExpertKernel, layout: Layout, experts: Sequence[int], slots: Sequence[int]) -> None:
        groups = self._routing.groups(experts)
        self._routing.put(experts, kernel.run(layout, slots, self._x, groups, self._owner.activate))

    def sum(self, weights: Tensor) -> Tensor:
        launch(self._gpu, "weighted sum", [*self._read, weights])
        parts = self._routing.outputs() * numbers(weights).reshape(-1, 1)
        return PretendTensor(parts.view(*weights.shape, -1).sum(dim=1).to(self._x.dtype), self._gpu)


def numbers(tensor: Tensor) -> Tensor:
    """What a kernel finds in a tensor. Raises AssertionError for one that is not on the device."""
    assert isinstance(tensor, PretendTensor), "a kernel is given a tensor that is not on its device"
    return tensor.numbers


@contextmanager
def pretend_triton() -> Iterator[None]:
    """Inside, experts on a pretend device are multiplied by `PretendTriton` where their records have one layout."""

    def made(
        slab: Slab, layouts: Sequence[Layout], gating: Gating | None, below: Slab | None = None
    ) -> TritonExperts | None:
        if gating is None or len(layouts) > 1 or not isinstance(slab.memory_of_all, PretendTensor):
            return None
        return PretendTriton(slab, layouts[0], gating, below)

    with mock.patch.object(expert, "triton_experts", made):
        yield
