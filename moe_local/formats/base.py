"""What a format is: arrays that stand for a matrix."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Arrays = Mapping[str, Tensor]
Shape = tuple[int, int]  # [out, in]


class Format(ABC):
    """How a matrix is held in arrays. Instances are immutable; parameters go to the constructor."""

    divisible = False  # whether `row_part` can tell rows apart, 16 of them at a time

    def row_part(self, arrays: Arrays, start: int, stop: int) -> Arrays:
        """Views of the arrays of rows `start`, a multiple of 16, to `stop`: a matrix by itself."""
        raise NotImplementedError(f"{type(self).__name__} is not divisible")

    @abstractmethod
    def decode(self, arrays: Arrays, shape: Shape, dtype: torch.dtype) -> Tensor:
        """The matrix [out, in] in `dtype`."""


class Whole(Format):
    """A format of tensors of any shape, each of which is decoded as one."""

    @abstractmethod
    def tensor(self, arrays: Arrays, dtype: torch.dtype) -> Tensor:
        """The tensor in `dtype`."""

    def decode(self, arrays: Arrays, shape: Shape, dtype: torch.dtype) -> Tensor:
        return self.tensor(arrays, dtype).view(shape)


class Packable(Format):
    """A format that matrices can be put into, where its declaration says that they fit."""

    @abstractmethod
    def encode(self, weight: Tensor) -> dict[str, Tensor]:
        """Arrays for a matrix [out, in] of any float type: always the same names, types and shapes for one shape."""


class Mergeable(Packable):
    """A packable format in which other matrices of the very same encoding are held as they are.

    Encoding decoded numbers would not always give them back.
    """

    @abstractmethod
    def merge(self, parts: Sequence[Arrays], order: Sequence[int] | None) -> dict[str, Tensor] | None:
        """The arrays of matrices one below the other, then rows put in `order`, of the shapes and types that `encode`
        gives. None where it cannot be done without a change.
        """


def stacked(arrays: Sequence[Tensor], order: Sequence[int] | None) -> Tensor:
    """Arrays [rows, ...] of one type as one, contiguous, its rows in `order`."""
    joined = torch.cat([array.view(torch.uint8) if array.element_size() == 1 else array for array in arrays])
    ordered = joined if order is None else joined[list(order)]
    return ordered.view(arrays[0].dtype)


_CHUNK = 1 << 19  # elements: what stays in a core's cache while it is encoded


def row_chunks(weight: Tensor) -> list[Tensor]:
    """Views of a few rows each of a matrix [out, in], to encode one after the other."""
    step = len(weight) if weight.is_meta else max(1, _CHUNK // weight.shape[1])
    return [weight[start : start + step] for start in range(0, len(weight), step)]


@dataclass(frozen=True)
class Affine:
    """A matrix as `(codes - zeros) * scales`: what group-wise integer quantisation means, whoever wrote it.

    `codes` [out, in] uint8, `scales` and `zeros` [out, groups] float32; group i has columns i * size to (i+1) * size.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor
    bits: int


class HasAffine(Format):
    """A format whose numbers are group-wise integers, so that another of that kind can hold the very same."""

    @abstractmethod
    def affine(self, arrays: Arrays, shape: Shape) -> Affine | None:
        """The integers; None where the groups are not contiguous columns."""
