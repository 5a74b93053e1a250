"""A layer's experts in one native call: up, activation and down of all that are there, each choice in its place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from moe_local.checkpoint.record import Layout, Matrix, Projection
from moe_local.checkpoint.tracing import row_major
from moe_local.formats.registry import format_of
from moe_local.kernels import native
from moe_local.kernels.cpu import NativeKind, is_held, native_kind
from moe_local.kernels.gating import Gating
from moe_local.memory.accelerator import on_cpu
from moe_local.memory.slab import Slab

if TYPE_CHECKING:
    from moe_local.kernels.native import _native


class NativeExperts:
    """Experts of some layouts in the slots of a slab in RAM, with one gating, for the native kernels."""

    def __init__(self, slab: Slab, layouts: Mapping[int, _native.ExpertLayout], width: int, *, exact: bool) -> None:
        """See `native_experts`; `layouts` by the id of the layout they are of, `width` the outputs of down."""
        self._slab = slab
        self._layouts = layouts
        self._width = width
        self._exact = exact

    def start(self, hidden: Tensor, index: Tensor, experts: int) -> NativePass:
        """The pass of hidden [T, H] through those of `experts` that index [T, k] names."""
        return NativePass(self, hidden, index, experts)


class NativePass:
    """One pass through a layer: `experts` are chosen, all of them are to be put, and then summed."""

    def __init__(self, owner: NativeExperts, hidden: Tensor, index: Tensor, experts: int) -> None:
        from moe_local.kernels.native import _native

        self._owner = owner
        self._dtype = hidden.dtype
        self._hidden = native.multipliable(hidden)
        index = (index if index.dtype is torch.int64 else index.to(torch.int64)).contiguous()
        tokens, choices = index.shape
        self._routing = _native.Routing(index.data_ptr(), index.nbytes, tokens, choices, experts)
        self.experts: Sequence[int] = self._routing.chosen
        self.outputs = self._hidden.new_empty(tokens * choices, owner._width)  # of each choice, once it is put

    def put(self, layout: Layout, experts: Sequence[int], slots: Sequence[int]) -> None:
        """Multiplies by the experts of `layout` that lie in `slots`."""
        from moe_local.kernels.native._native import run_experts

        own, x, y = self._owner, self._hidden, self.outputs
        run_experts(
            native.machine(), own._layouts[id(layout)], self._routing, own._exact,
            experts, own._slab.addresses(slots), own._slab.slot_size,
            x.data_ptr(), x.nbytes, native.TYPES[x.dtype], y.data_ptr(), y.nbytes, native.TYPES[y.dtype],
        )  # fmt: skip

    def place(self, places: Tensor, outputs: Tensor) -> None:
        """Takes what others multiplied: outputs [n, H] of the choices at `places`, int64 [n]."""
        self.outputs[places] = outputs.to(self.outputs.dtype)

    def sum(self, weights: Tensor) -> Tensor:
        """What each token's experts gave, by weights [T, k] and in the order of its choices -> [T, H]."""
        from moe_local.kernels.native._native import sum_choices

        parts, by = self.outputs, native.multipliable(weights)
        out = parts.new_empty(by.shape[0], parts.shape[1])
        sum_choices(
            native.machine(), self._routing, parts.shape[1], parts.data_ptr(), parts.nbytes,
            by.data_ptr(), by.nbytes, native.TYPES[by.dtype], out.data_ptr(), out.nbytes, native.TYPES[out.dtype],
        )  # fmt: skip
        return out if out.dtype is self._dtype else out.to(self._dtype)


def native_experts(
    slab: Slab, layouts: Sequence[Layout], gating: Gating | None, *, exact: bool
) -> NativeExperts | None:
    """The experts of a layer whose records have one of `layouts`; None where the kernels lack something for them."""
    if gating is None or not on_cpu(slab.device) or native.missing() is not None:
        return None
    made = {id(layout): _native_layout(layout, gating) for layout in layouts}
    known = {key: layout for key, layout in made.items() if layout is not None}
    widths = {layout.projections["down_proj"].shape[0] for layout in layouts if "down_proj" in layout.projections}
    if len(known) < len(made) or len(widths) != 1:
        return None
    return NativeExperts(slab, known, widths.pop(), exact=exact)


def _native_layout(layout: Layout, gating: Gating) -> _native.ExpertLayout | None:
    from moe_local.kernels.native import _native

    up = _placed(layout, layout.projections.get("gate_up_proj") or layout.projections.get("up_proj"))
    down = _placed(layout, layout.projections.get("down_proj"))
    if up is None or down is None:
        return None
    try:
        return _native.ExpertLayout(
            up, down, gating.activation, gating.gated, gating.interleaved, gating.alpha, gating.limit, layout.size
        )
    except ValueError:  # they do not go in one
        return None


def _placed(layout: Layout, projection: Projection | None) -> _native.Projection | None:
    """A projection as the kernels want it: one matrix, or two halves of a kind, its outputs in the model's order."""
    from moe_local.kernels.native import _native

    if projection is None or projection.order is not None or projection.bias_order is not None:
        return None
    first, bias = projection.matrices[0], projection.bias
    if any((each.encoding, each.shape) != (first.encoding, first.shape) for each in projection.matrices):
        return None
    if bias is not None and (bias.dtype not in native.TYPES or bias.strides != (1,)):
        return None
    kind = native_kind(format_of(first.encoding), first.shape)
    if kind is None or kind.rotary_heads:
        return None
    places = [found for matrix in projection.matrices if (found := _places(matrix, kind)) is not None]
    place, numbers = (-1, 0) if bias is None else (bias.position, native.TYPES[bias.dtype])
    try:
        return _native.Projection(
            kind.kind, *projection.shape, kind.group, kind.scale_rows, kind.scale_columns,
            places, place, numbers, layout.size,
        )  # fmt: skip
    except ValueError:  # of a shape that they do not have, or of matrices without a place
        return None


def _places(matrix: Matrix, kind: NativeKind) -> list[int] | None:
    """Where the matrix's data, scales and numbers of each row begin in a record; -1 for what there is not."""
    arrays = [matrix.arrays.get(name) if name else None for name in kind.arrays]
    specs = [None if array is None else (array.dtype, array.shape) for array in arrays]
    if any(array is not None and array.strides != row_major(array.shape) for array in arrays):
        return None
    if not is_held(kind, matrix.shape, *specs):
        return None
    return [-1 if array is None else array.position for array in arrays]
