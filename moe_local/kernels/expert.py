"""The kernel for experts: up, activation and down for those of a layer that are there, each on its own tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from moe_local.checkpoint.record import Layout, Projection
from moe_local.formats.records import view, views
from moe_local.kernels.base import Multiply
from moe_local.kernels.gating import Activate, Gating
from moe_local.kernels.matrix import bind
from moe_local.kernels.native_experts import NativeExperts, native_experts
from moe_local.kernels.triton_experts import TritonExperts, triton_experts
from moe_local.memory.slab import Slab


class ExpertKernel:
    """Multiplies by experts that lie in the slots of a slab.

    An expert is `(layout, slot)`. How to multiply by it is settled when it is first met, and kept: whatever record of
    that layout comes to lie in the slot is read from there.
    """

    def __init__(self, slab: Slab, *, exact: bool = False, below: Slab | None = None) -> None:
        """Over `slab`; by activations that are `exact`, or rounded to 8 bits where a kernel gains by it.

        Kernels of a device's may read the slab `below` too, in page-locked RAM.
        """
        self._slab = slab
        self._below = below
        self._exact = exact
        self._known: dict[int, tuple[int, Layout]] = {}  # id of a layout -> the number of all equal ones, and it
        self._layouts: list[Layout] = []  # by their numbers
        self._bound: dict[tuple[int, int], _Bound] = {}  # (number of the layout, slot)

    def all_at_once(self, layouts: Sequence[Layout], gating: Gating | None) -> NativeExperts | TritonExperts | None:
        """The same experts for one native call or a few Triton launches, where there are kernels for records of these
        layouts and this gating.
        """
        native = native_experts(self._slab, layouts, gating, exact=self._exact)
        return native or triton_experts(self._slab, layouts, gating, self._below)

    def run(
        self, layout: Layout, slots: Sequence[int], x: Tensor, groups: Sequence[Tensor] | None, activate: Activate
    ) -> Sequence[Tensor]:
        """The outputs of the experts of `layout` in `slots`, unweighted: for each [rows, H].

        `groups` says for each which rows of x [T, H] it sees, int64 [rows]; None: each sees all. `activate` is called
        once, on the rows of all of them, one expert's after another's.
        """
        experts = self._experts(layout, slots)
        inputs = [x] * len(experts) if groups is None else [x[rows] for rows in groups]
        hidden = activate(_joined([expert.up(rows) for expert, rows in zip(experts, inputs, strict=True)]))
        parts = [hidden] if len(experts) == 1 else torch.split(hidden, [len(rows) for rows in inputs])
        return [expert.down(part) for expert, part in zip(experts, parts, strict=True)]

    def _experts(self, layout: Layout, slots: Sequence[int]) -> list[_Bound]:
        number, _ = self._known.get(id(layout)) or self._meet(layout)
        bound = self._bound
        return [bound.get((number, slot)) or self._bind(number, slot) for slot in slots]

    def _meet(self, layout: Layout) -> tuple[int, Layout]:
        if layout not in self._layouts:
            self._layouts.append(layout)
        known = self._known[id(layout)] = self._layouts.index(layout), layout  # kept, or its id would be another's
        return known

    def _bind(self, number: int, slot: int) -> _Bound:
        made = self._bound[number, slot] = _bind_expert(self._layouts[number], self._slab[slot], self._exact)
        return made

    def close(self) -> None:
        """Lets go of the slab's memory."""
        self._bound.clear()


@dataclass(frozen=True, slots=True)
class _Bound:
    """An expert's two multiplications; its arrays are views of the slot."""

    up: Multiply  # or gate and up together
    down: Multiply


@dataclass(frozen=True, slots=True)
class _Projection:
    """`x @ weight.T + bias` of several matrices, or with a bias, or with outputs in another order."""

    matrices: tuple[Multiply, ...]
    bias: Tensor | None  # [out]
    order: Tensor | None  # [out] int64
    bias_order: Tensor | None  # [out] int64

    def __call__(self, x: Tensor) -> Tensor:
        """x [rows, in] -> [rows, out] in x's dtype."""
        outputs = [multiply(x) for multiply in self.matrices]
        y = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)
        if self.order is not None:
            y = y[:, self.order]
        if self.bias is None:
            return y
        bias = self.bias if self.bias_order is None else self.bias[self.bias_order]
        return y + bias.to(x.dtype)


def _bind_expert(layout: Layout, slot: Tensor, exact: bool) -> _Bound:
    """The expert whose record of `layout` lies in `slot` (uint8 [bytes])."""
    up = "gate_up_proj" if "gate_up_proj" in layout.projections else "up_proj"
    return _Bound(_bind(layout.projections[up], slot, exact), _bind(layout.projections["down_proj"], slot, exact))


def _bind(projection: Projection, slot: Tensor, exact: bool) -> Multiply:
    matrices = tuple(
        bind(matrix.encoding, views(matrix, slot), matrix.shape, exact=exact) for matrix in projection.matrices
    )
    if len(matrices) == 1 and projection.bias is None and projection.order is None:
        return matrices[0]
    bias = None if projection.bias is None else view(projection.bias, slot)
    return _Projection(matrices, bias, _index(projection.order, slot), _index(projection.bias_order, slot))


def _index(order: tuple[int, ...] | None, slot: Tensor) -> Tensor | None:
    return None if order is None else torch.tensor(order, device=slot.device)


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))
