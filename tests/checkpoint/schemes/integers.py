"""Group-wise integers by the textbook, for schemes whose own libraries need a GPU."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Integers:
    """Column c of [out, in] `codes` belongs to group `columns[c]` of [out, groups] `zeros` and `scales`."""

    codes: Tensor
    zeros: Tensor
    scales: Tensor
    columns: Tensor

    @property
    def weight(self) -> Tensor:
        return (self.codes - self.zeros[:, self.columns]) * self.scales[:, self.columns]


def quantise(weight: Tensor, bits: int, columns: Tensor) -> Integers:
    """Asymmetric rounding, each group between its extremes and 0; all integers int64."""
    most = 2**bits - 1
    groups = range(int(columns.max()) + 1)
    low = torch.stack([weight[:, columns == group].amin(dim=1) for group in groups], dim=1).clamp(max=0)
    high = torch.stack([weight[:, columns == group].amax(dim=1) for group in groups], dim=1).clamp(min=0)
    scales = (high - low) / most
    zeros = (-low / scales).round()
    codes = (weight / scales[:, columns] + zeros[:, columns]).round().clamp(0, most)
    return Integers(codes.long(), zeros.long(), scales, columns)


def in_order(width: int, group: int) -> Tensor:
    """The group of each column where they are contiguous; -1 for one group."""
    return torch.arange(width) // (width if group == -1 else group)


def pack(numbers: Tensor, bits: int, order: tuple[int, ...] | None = None) -> Tensor:
    """int64 [n, m] -> int32 [n, m * bits / 32]: `order[i]` of each word's numbers is i-th from its lowest bits."""
    each = 32 // bits
    order = order or tuple(range(each))
    grouped = numbers.view(len(numbers), -1, each)
    total = sum(grouped[..., number] << (bits * place) for place, number in enumerate(order))
    assert isinstance(total, Tensor)
    return torch.where(total >= 2**31, total - 2**32, total).int()
