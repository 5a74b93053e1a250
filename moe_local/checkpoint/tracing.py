"""Following bytes through transformers' weight conversions without reading one.

transformers describes how a published tensor becomes a parameter by operations on tensors (stack the experts,
concatenate gate and up, transpose, de-interleave ...). Running those very operations on a `Traced` tensor tells
which element of which file tensor each element of the parameter is, so that records can be read straight from
the user's files. Only operations that move elements are known; any other raises UntraceableError.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch


class UntraceableError(Exception):
    """The operation does not merely move elements, or moves them in a way that is not followed."""


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of a block: `count` positions of the target from `start` by `step`; `stride` in the source."""

    start: int
    count: int
    stride: int
    step: int = 1


@dataclass(frozen=True, slots=True)
class Block:
    """A box of target elements that lie at even strides in one source tensor, from element `offset` of it."""

    source: str
    offset: int
    axes: tuple[Axis, ...]

    @property
    def numel(self) -> int:
        return math.prod(axis.count for axis in self.axes)

    def with_axis(self, dim: int, axis: Axis) -> Block:
        return replace(self, axes=(*self.axes[:dim], axis, *self.axes[dim + 1 :]))

    def narrowed(self, dim: int, start: int, stop: int) -> Block | None:
        """The part with target positions in [start, stop) of `dim`, renumbered from zero; None if empty."""
        axis = self.axes[dim]
        first = max(0, -((axis.start - start) // axis.step))  # smallest i with axis.start + i * step >= start
        last = min(axis.count, -((axis.start - stop) // axis.step))
        if first >= last:
            return None
        moved = replace(axis, start=axis.start + first * axis.step - start, count=last - first)
        return replace(self.with_axis(dim, moved), offset=self.offset + first * axis.stride)


def row_major(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides, in elements, of a contiguous array."""
    return tuple(math.prod(shape[dim + 1 :]) for dim in range(len(shape)))


class Traced:
    """A tensor of known shape whose elements are known by where they come from.

    Takes part in torch functions through `__torch_function__`, and in the methods that conversions call.
    """

    def __init__(self, shape: Sequence[int], blocks: Sequence[Block]) -> None:
        self.shape = torch.Size(shape)
        self.blocks = tuple(blocks)

    @classmethod
    def source(cls, name: str, shape: Sequence[int]) -> Traced:
        """The tensor `name` as the file holds it: row-major."""
        axes = tuple(Axis(0, count, stride) for count, stride in zip(shape, row_major(shape), strict=True))
        return cls(shape, [Block(name, 0, axes)])

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        handler = _HANDLERS.get(func)
        if handler is None:
            raise UntraceableError(f"torch.{getattr(func, '__name__', func)}")
        return handler(*args, **(kwargs or {}))

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def dim(self) -> int:
        return self.ndim

    def size(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self.shape[dim]

    def contiguous(self) -> Traced:
        return self

    def narrow(self, dim: int, start: int, length: int) -> Traced:
        dim %= self.ndim
        kept = (block.narrowed(dim, start, start + length) for block in self.blocks)
        shape = (*self.shape[:dim], length, *self.shape[dim + 1 :])
        return Traced(shape, [block for block in kept if block is not None])

    def squeeze(self, dim: int) -> Traced:
        dim %= self.ndim
        if self.shape[dim] != 1:
            return self
        blocks = [replace(b, axes=b.axes[:dim] + b.axes[dim + 1 :]) for b in self.blocks]
        return Traced(self.shape[:dim] + self.shape[dim + 1 :], blocks)

    def unsqueeze(self, dim: int) -> Traced:
        dim %= self.ndim + 1
        blocks = [replace(b, axes=(*b.axes[:dim], Axis(0, 1, 0), *b.axes[dim:])) for b in self.blocks]
        return Traced((*self.shape[:dim], 1, *self.shape[dim:]), blocks)

    def transpose(self, dim0: int, dim1: int) -> Traced:
        order = list(range(self.ndim))
        dim0, dim1 = dim0 % self.ndim, dim1 % self.ndim
        order[dim0], order[dim1] = dim1, dim0
        blocks = [replace(b, axes=tuple(b.axes[dim] for dim in order)) for b in self.blocks]
        return Traced([self.shape[dim] for dim in order], blocks)

    def split(self, sizes: int | Sequence[int], dim: int = 0) -> tuple[Traced, ...]:
        total = self.shape[dim]
        if isinstance(sizes, int):
            sizes = [min(sizes, total - start) for start in range(0, total, sizes)]
        starts = [sum(sizes[:index]) for index in range(len(sizes))]
        return tuple(self.narrow(dim, start, size) for start, size in zip(starts, sizes, strict=True))

    def chunk(self, chunks: int, dim: int = 0) -> tuple[Traced, ...]:
        return self.split(-(-self.shape[dim] // chunks), dim)

    def unbind(self, dim: int = 0) -> tuple[Traced, ...]:
        return tuple(part.squeeze(dim) for part in self.split(1, dim))

    def __getitem__(self, index: Any) -> Traced:
        if index is Ellipsis:
            return self
        if isinstance(index, int):
            return self.narrow(0, index, 1).squeeze(0)
        raise UntraceableError(f"indexing by {index!r}")

    def reshape(self, *shape: Any) -> Traced:
        target = list(shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape)
        if math.prod(target) != math.prod(self.shape):
            raise UntraceableError(f"reshape of {tuple(self.shape)} to {tuple(target)}")
        traced, dim = self, 0
        while dim < max(traced.ndim, len(target)):
            have = traced.shape[dim] if dim < traced.ndim else 1
            want = target[dim] if dim < len(target) else 1
            if dim >= traced.ndim:
                traced = traced.unsqueeze(dim)
            elif want < have:
                traced = traced._split_axis(dim, want)
            while dim < traced.ndim - 1 and traced.shape[dim] < want:
                traced = traced._merge_axes(dim)
            if dim >= len(target):
                traced = traced.squeeze(dim)
                continue
            dim += 1
        if list(traced.shape) != target:
            raise UntraceableError(f"reshape of {tuple(self.shape)} to {tuple(target)}")
        return traced

    view = reshape

    def _split_axis(self, dim: int, outer: int) -> Traced:
        inner, rest = divmod(self.shape[dim], outer)
        if rest or any(b.axes[dim] != Axis(0, self.shape[dim], b.axes[dim].stride) for b in self.blocks):
            raise UntraceableError("splitting an axis that has parts")
        blocks = []
        for block in self.blocks:
            stride = block.axes[dim].stride
            axes = (Axis(0, outer, stride * inner), Axis(0, inner, stride))
            blocks.append(replace(block, axes=(*block.axes[:dim], *axes, *block.axes[dim + 1 :])))
        return Traced((*self.shape[:dim], outer, inner, *self.shape[dim + 1 :]), blocks)

    def _merge_axes(self, dim: int) -> Traced:
        inner = self.shape[dim + 1]
        blocks = [merged for block in self.blocks for merged in _merged(block, dim, inner)]
        return Traced((*self.shape[:dim], self.shape[dim] * inner, *self.shape[dim + 2 :]), blocks)


def _merged(block: Block, dim: int, inner: int) -> list[Block]:
    """`block` with axes `dim` and `dim + 1` as one; several blocks where one stride will not do."""
    outside, inside = block.axes[dim], block.axes[dim + 1]
    if outside.step != 1 or inside.step != 1:
        raise UntraceableError("merging axes with steps")

    def placed(offset: int, axis: Axis) -> Block:
        return replace(block, offset=offset, axes=(*block.axes[:dim], axis, *block.axes[dim + 2 :]))

    whole = inside.start == 0 and inside.count == inner
    if whole and outside.stride == inner * inside.stride:
        count = outside.count * inner
        return [placed(block.offset, Axis(outside.start * inner, count, inside.stride))]
    if inside.count <= outside.count:
        return [
            placed(
                block.offset + i * inside.stride,
                Axis(outside.start * inner + inside.start + i, outside.count, outside.stride, inner),
            )
            for i in range(inside.count)
        ]
    return [
        placed(
            block.offset + i * outside.stride,
            Axis((outside.start + i) * inner + inside.start, inside.count, inside.stride),
        )
        for i in range(outside.count)
    ]


def _cat(tensors: Sequence[Traced], dim: int = 0) -> Traced:
    dim %= tensors[0].ndim
    shape = list(tensors[0].shape)
    if any(len(t.shape) != len(shape) for t in tensors) or any(
        t.shape[d] != shape[d] for t, d in product(tensors, range(len(shape))) if d != dim
    ):
        raise UntraceableError(f"tensors of unequal shapes {sorted({tuple(t.shape) for t in tensors})}")
    blocks, position = [], 0
    for tensor in tensors:
        for block in tensor.blocks:
            axis = block.axes[dim]
            blocks.append(block.with_axis(dim, replace(axis, start=axis.start + position)))
        position += tensor.shape[dim]
    shape[dim] = position
    return Traced(shape, blocks)


def _stack(tensors: Sequence[Traced], dim: int = 0) -> Traced:
    return _cat([tensor.unsqueeze(dim) for tensor in tensors], dim)


def _transpose(input: Traced, dim0: int, dim1: int) -> Traced:
    return input.transpose(dim0, dim1)


_HANDLERS: dict[Any, Callable[..., Any]] = {
    torch.cat: _cat,
    torch.stack: _stack,
    torch.transpose: _transpose,
    torch.chunk: Traced.chunk,
    torch.split: Traced.split,
    torch.unbind: Traced.unbind,
    torch.reshape: Traced.reshape,
    torch.squeeze: Traced.squeeze,
}
