"""A layer's experts in three Triton launches: gate, up and activation of all choices, then down, then their sum."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from moe_local.checkpoint.record import Layout
from moe_local.kernels.gating import Gating
from moe_local.kernels.triton_launch import Launcher, launcher
from moe_local.kernels.triton_layout import OPTIONS, PlacedExpert, place
from moe_local.kernels.triton_matrix import KINDS, values
from moe_local.kernels.triton_probe import reads_ram, usable
from moe_local.memory.accelerator import has_triton_cores, launching_on
from moe_local.memory.slab import Slab

_VECTOR_CHOICES = 16  # up to so many, or half of the experts, few share an expert: each is multiplied by itself
_SUMMED = 1024  # outputs of a program
_MANY_ROWS = 32  # of an expert, on average: from there tiles are of 64 rows, below of 16


class TritonExperts:
    """Experts of some layouts in the slots of a slab on a GPU, with one gating, for the Triton kernels."""

    def __init__(self, slab: Slab, layouts: Mapping[int, PlacedExpert], below: Slab | None = None) -> None:
        """See `triton_experts`; `layouts` by the id of the layout they are of."""
        self._slab = slab
        self._below = below
        self._layouts = layouts
        self._launchers: dict[object, Launcher] = {}
        self._only = next(iter(layouts.values())) if len(layouts) == 1 else None

    @property
    def run_from_table(self) -> bool:
        """Whether `run` can be used."""
        return self._only is not None

    @property
    def reads_ram(self) -> bool:
        """Whether `run` reads experts in the slab below too, for one token."""
        return self._below is not None

    def start(self, hidden: Tensor, index: Tensor, experts: int) -> TritonPass:
        """The pass of hidden [T, H] through those of `experts` that index [T, k] names; waits for the index."""
        work = self._work(hidden, index, experts)
        return VectorPass(self, work) if work.few else TiledPass(self, work)

    def run(self, hidden: Tensor, index: Tensor, weights: Tensor, slots: Tensor) -> Tensor:
        """A whole pass, hidden [T, H], index and weights [T, k] -> [T, H], with nothing read back from the device.

        `slots` [experts] int32, on the device, is in which slot each expert lies; -2 and less, for one token only:
        in slot 0 and up of the slab below; -1 for one that is nowhere: its choices are left out of the sum. Raises
        ValueError where records have several layouts.
        """
        if self._only is None:
            raise ValueError("experts of several layouts cannot be run from one table of slots")
        work = self._work(hidden, index, len(slots))
        if not work.choices:
            return torch.zeros_like(hidden)
        with launching_on(hidden.device):
            if work.few:
                work.vector(self._only, self._slab, slots, self._below)
            else:
                work.tiled(self._only, self._slab, *work.tiles_on_device(slots))
            return work.sum(weights, slots)

    def _work(self, hidden: Tensor, index: Tensor, experts: int) -> _Work:
        placed = next(iter(self._layouts.values()))
        return _Work(hidden, index, experts, placed.inner, placed.down.rows, self._launchers)


class _Work:
    """Choices under way: inputs, what came of gate and up, and the place of each choice's output."""

    def __init__(
        self, hidden: Tensor, index: Tensor, experts: int, inner: int, width: int, kept: dict[object, Launcher]
    ) -> None:
        self._kept = kept
        self.hidden = (hidden if hidden.dtype in KINDS else hidden.float()).contiguous()
        self.dtype = hidden.dtype
        self.index = index.to(torch.int64).contiguous()
        self.experts = experts
        self.choices = self.index.numel()
        self.few = len(index) == 1 or self.choices <= max(_VECTOR_CHOICES, experts // 2)
        self.block = 64 if self.choices >= _MANY_ROWS * experts else 16
        self.inner = inner
        self._each = self.index.shape[1]
        between = torch.float32 if self.few else self.hidden.dtype
        self._inner = self.hidden.new_empty(self.choices, inner, dtype=between)
        self._outputs = self.hidden.new_empty(self.choices, width, dtype=between)
        self._exact = self.hidden.dtype == torch.float32 or not has_triton_cores(hidden.device)

    def vector(self, placed: PlacedExpert, slab: Slab, slots: Tensor, below: Slab | None = None) -> None:
        """Multiplies by the experts of a layout that `slots` says are there, each choice by itself."""
        from moe_local.kernels.triton_vector import down_vector, up_vector

        index, records, counts = self.index, slab.memory_of_all, (slab.slot_size, self.experts)
        up = launcher(
            self._kept, ("up", id(placed), self.experts, self._each),
            lambda: Launcher(up_vector, (*counts, self._each, *placed.up_numbers), placed.up_vector),
        )  # fmt: skip
        down = launcher(
            self._kept, ("down", id(placed), self.experts),
            lambda: Launcher(down_vector, (*counts, *placed.down_numbers), placed.down_vector),
        )  # fmt: skip
        table, other = (values(side.reader.table, records.device) for side in (placed.up, placed.down))
        blocks, others = placed.vector_blocks
        ram = None if below is None else below.memory_of_all
        up(self.choices, blocks, self.hidden, index, slots, records, ram, self._inner, table)
        down(self.choices, others, self._inner, index, slots, records, ram, self._outputs, other)

    def tiled(self, placed: PlacedExpert, slab: Slab, order: Tensor, tiles: Tensor) -> None:
        """Multiplies the choices in `tiles` [n, 3] int32 (see `triton_tiled`) of `order` [choices] int64."""
        from moe_local.kernels.triton_tiled import down_tiled, up_tiled

        records, size, how = slab.memory_of_all, slab.slot_size, (self.block, self._exact)
        up = launcher(
            self._kept, ("up tiled", id(placed), self._each, how),
            lambda: Launcher(up_tiled, (size, self._each, *placed.up_numbers), placed.up_tiled(*how)),
        )  # fmt: skip
        down = launcher(
            self._kept, ("down tiled", id(placed), how),
            lambda: Launcher(down_tiled, (size, *placed.down_numbers), placed.down_tiled(*how)),
        )  # fmt: skip
        table, other = (values(side.reader.table, records.device) for side in (placed.up, placed.down))
        blocks, others = placed.tiled_blocks
        up(blocks, len(tiles), self.hidden, order, tiles, records, self._inner, table)
        down(others, len(tiles), self._inner, order, tiles, records, self._outputs, other)

    def sorted(self) -> tuple[Tensor, Tensor]:
        """Places of the choices by expert, int64 [choices], and how many each has, int64 [experts + 1]."""
        flat = self.index.view(-1)
        known = flat.masked_fill((flat < 0) | (flat >= self.experts), self.experts)
        counts = flat.new_zeros(self.experts + 1).scatter_add_(0, known, torch.ones_like(known))
        return known.argsort(stable=True), counts

    def tiles_on_device(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """The order and the tiles of all experts, as many as there could be, without a look at them."""
        order, counts = self.sorted()
        counts = counts[:-1]
        ends = counts.cumsum(0)
        tile_ends = ((counts + self.block - 1) // self.block).cumsum(0)
        most = self.choices // self.block + min(self.experts, self.choices)
        tile = torch.arange(most, device=order.device)
        expert = torch.searchsorted(tile_ends, tile, right=True)
        there = expert < self.experts
        expert = expert.clamp(max=self.experts - 1)
        before = tile_ends[expert] - (counts[expert] + self.block - 1) // self.block
        first = ends[expert] - counts[expert] + (tile - before) * self.block
        slot = torch.where(there, slots[expert].long(), -1)
        return order, torch.stack([slot, first, ends[expert]], dim=1).to(torch.int32)

    def place(self, places: Tensor, outputs: Tensor) -> None:
        """Takes what others multiplied: outputs [n, H], here, of the choices at `places`, int64 [n] in RAM."""
        there = places.to(self._outputs.device, non_blocking=True)
        self._outputs.index_copy_(0, there, outputs.to(self._outputs.dtype))

    def sum(self, weights: Tensor, slots: Tensor | None) -> Tensor:
        """What came of the choices by weights [T, k] -> [T, H] in the type of the hidden states.

        Where `slots` [experts] are given, those of experts that are in none are left out.
        """
        from moe_local.kernels.triton_vector import weighted_sum

        width = self._outputs.shape[1]
        out = self.hidden.new_empty(len(self.index), width)
        compiled = {"of_slots": slots is not None, "tile": _SUMMED, **OPTIONS}
        total = launcher(
            self._kept, ("sum", self.experts, self._each, slots is None),
            lambda: Launcher(weighted_sum, (self.experts, self._each, width), compiled),
        )  # fmt: skip
        total(len(out), -(-width // _SUMMED), self._outputs, self.index, slots, weights.contiguous(), out)
        return out.to(self.dtype)


class TritonPass(ABC):
    """One pass through a layer: `experts` are chosen, all of them are to be put, and then summed."""

    experts: Sequence[int]

    def __init__(self, owner: TritonExperts, work: _Work) -> None:
        self._owner = owner
        self._work = work

    @abstractmethod
    def put(self, layout: Layout, experts: Sequence[int], slots: Sequence[int]) -> None:
        """Multiplies by the experts of `layout` that lie in `slots`: one small copy to the device, two launches."""

    def place(self, places: Tensor, outputs: Tensor) -> None:
        """Takes what others multiplied: outputs [n, H], here, of the choices at `places`, int64 [n] in RAM."""
        self._work.place(places, outputs)

    def sum(self, weights: Tensor) -> Tensor:
        """What each token's experts gave, by weights [T, k] and in the order of its choices -> [T, H]."""
        work = self._work
        if not work.choices:
            return torch.zeros_like(work.hidden).to(work.dtype)
        with launching_on(work.index.device):
            return work.sum(weights, None)


class VectorPass(TritonPass):
    """A pass of few choices: each is multiplied by itself."""

    def __init__(self, owner: TritonExperts, work: _Work) -> None:
        super().__init__(owner, work)
        chosen: list[int] = work.index.view(-1).tolist()
        self.experts = [expert for expert in dict.fromkeys(chosen) if 0 <= expert < work.experts]

    def put(self, layout: Layout, experts: Sequence[int], slots: Sequence[int]) -> None:
        own, work = self._owner, self._work
        if not len(experts):
            return
        table = [-1] * work.experts
        for expert, slot in zip(experts, slots, strict=True):
            table[expert] = slot
        there = torch.tensor(table, dtype=torch.int32).to(work.index.device, non_blocking=True)
        with launching_on(work.index.device):
            work.vector(own._layouts[id(layout)], own._slab, there)


class TiledPass(TritonPass):
    """A pass of many choices: those of an expert are multiplied together."""

    def __init__(self, owner: TritonExperts, work: _Work) -> None:
        super().__init__(owner, work)
        self._order, counts = work.sorted()
        self._spans: dict[int, tuple[int, int]] = {}
        end = 0
        for expert, count in enumerate(counts[:-1].tolist()):
            if count:
                self._spans[expert] = end, end + count
            end += count
        self.experts = list(self._spans)

    def put(self, layout: Layout, experts: Sequence[int], slots: Sequence[int]) -> None:
        own, work = self._owner, self._work
        tiles: list[tuple[int, int, int]] = []
        for expert, slot in zip(experts, slots, strict=True):
            first, last = self._spans[expert]
            tiles += ((slot, start, last) for start in range(first, last, work.block))
        if tiles:
            there = torch.tensor(tiles, dtype=torch.int32).to(work.index.device, non_blocking=True)
            with launching_on(work.index.device):
                work.tiled(own._layouts[id(layout)], own._slab, self._order, there)


def triton_experts(
    slab: Slab, layouts: Sequence[Layout], gating: Gating | None, below: Slab | None = None
) -> TritonExperts | None:
    """The experts of a layer whose records have one of `layouts`; None where the kernels lack something for them.

    They read those in a slab `below` too, in page-locked RAM, where the device can.
    """
    if gating is None or not usable(slab.device):
        return None
    made = {id(layout): place(layout, gating) for layout in layouts}
    known = {key: placed for key, placed in made.items() if placed is not None}
    shapes = {(placed.up.width, placed.inner, placed.down.rows) for placed in known.values()}
    if len(known) != len(made) or len(shapes) != 1:
        return None
    return TritonExperts(slab, known, below if below is not None and reads_ram(slab.device) else None)
