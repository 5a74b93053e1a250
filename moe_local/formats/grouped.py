"""What the formats of group-wise integers share."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from moe_local.formats.base import Affine, Arrays, HasAffine, Shape


class Grouped(HasAffine):
    """Integers of `bits`, a scale and a zero for every `group` columns of a row, or for all of them if it is 0.

    An array `g_idx` [in] int32, where there is one, says which group each column belongs to.
    """

    def __init__(self, bits: int, group: int = 0) -> None:
        self._bits = bits
        self._group = group

    @abstractmethod
    def _integers(self, arrays: Arrays, shape: Shape) -> Affine:
        """The integers, with the groups in the order of the arrays."""

    def affine(self, arrays: Arrays, shape: Shape) -> Affine | None:
        plain = self._columns(arrays, shape) is None and shape[1] % (self._group or shape[1]) == 0
        return self._integers(arrays, shape) if plain else None

    def decode(self, arrays: Arrays, shape: Shape, dtype: torch.dtype) -> Tensor:
        integers = self._integers(arrays, shape)
        numbers, zeros, scales = integers.codes.to(torch.float32), integers.zeros, integers.scales
        columns = self._columns(arrays, shape)
        if columns is None and shape[1] % (self._group or shape[1]) == 0:
            grouped = numbers.view(shape[0], scales.shape[1], -1)
            grouped.sub_(zeros.unsqueeze(-1)).mul_(scales.unsqueeze(-1))
        else:
            columns = self._in_order(shape, numbers.device) if columns is None else columns
            numbers.sub_(zeros[:, columns]).mul_(scales[:, columns])
        return numbers.to(dtype)

    def _columns(self, arrays: Arrays, shape: Shape) -> Tensor | None:
        """The group of each column [in] int64, never one that is not there; None if they are in order."""
        if "g_idx" not in arrays:
            return None
        columns = arrays["g_idx"].long()
        if torch.equal(columns, self._in_order(shape, columns.device)):
            return None
        return columns.clamp(0, -(-shape[1] // (self._group or shape[1])) - 1)

    def _in_order(self, shape: Shape, device: torch.device) -> Tensor:
        return torch.arange(shape[1], device=device) // (self._group or shape[1])


def unpack(words: Tensor, bits: int) -> Tensor:
    """int32 [..., words] -> uint8 [..., words * 32 / bits]: 4 or 8 bits each, the lowest first."""
    if words.stride(-1) != 1 or not words.is_contiguous():  # an axis of one may be contiguous at any stride
        words = words.clone(memory_format=torch.contiguous_format)
    codes = words.view(torch.uint8)
    return codes if bits == 8 else torch.stack([codes & 0xF, codes >> 4], dim=-1).flatten(-2)


def by_row(values: Tensor, out: int) -> Tensor:
    """One number, [out] or [out, groups] -> [out, groups] float32."""
    return values.to(torch.float32).reshape(-1, max(1, values.numel() // out)).expand(out, -1)
