"""fp8: 8-bit floats times a scale for each block, or each row, or one in all."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from moe_local.formats.base import Arrays, Mergeable, Shape, stacked
from moe_local.formats.lookup import widened

_MAX = torch.finfo(torch.float8_e4m3fn).max


class Fp8(Mergeable):
    """`weight` [out, in] float8, and `scale` to multiply it with, of any float type or in U8 exponents (E8M0).

    With a `block` of rows, and as many columns unless `columns` says otherwise, `scale` is [blocks down, blocks
    across], the last ones cut short at the edges; without, it is one number a row, or one. Encoding gives
    float8_e4m3fn and float32.
    """

    def __init__(self, block: int | None = None, columns: int | None = None) -> None:
        self.rows = block
        self.columns = columns or block

    def encode(self, weight: Tensor) -> dict[str, Tensor]:
        wide = weight.to(torch.float32)
        largest = self._largest(wide)
        scale = torch.where(largest > 0, largest / _MAX, 1.0)
        codes = (wide / self._spread(scale, wide.shape)).clamp(-_MAX, _MAX).to(torch.float8_e4m3fn)
        return {"weight": codes, "scale": scale}

    def _largest(self, weight: Tensor) -> Tensor:
        """The largest magnitude of each block, or of each row [out, 1]."""
        magnitudes = weight.abs()
        if self.rows is None or self.columns is None:
            return magnitudes.amax(dim=1, keepdim=True)
        out, width = weight.shape
        padded = F.pad(magnitudes.contiguous(), (0, -width % self.columns, 0, -out % self.rows))
        down, across = len(padded) // self.rows, padded.shape[1] // self.columns
        return padded.view(down, self.rows, across, self.columns).amax(dim=(1, 3))

    def _spread(self, scale: Tensor, shape: Sequence[int]) -> Tensor:
        """`scale` in a shape that broadcasts to [out, in]."""
        if self.rows is None or self.columns is None:
            return scale.reshape(-1, 1)
        out, width = shape
        tall = scale.repeat_interleave(self.rows, dim=0)[:out]
        return tall.repeat_interleave(self.columns, dim=1)[:, :width]

    def merge(self, parts: Sequence[Arrays], order: Sequence[int] | None) -> dict[str, Tensor] | None:
        if any(part["weight"].dtype != torch.float8_e4m3fn for part in parts):
            return None
        weight = stacked([part["weight"] for part in parts], order)
        scales = [_exact(part["scale"]) for part in parts]
        if self.rows is None:
            by_row = [s.reshape(-1, 1).expand(len(p["weight"]), 1) for s, p in zip(scales, parts, strict=True)]
            return {"weight": weight, "scale": stacked(by_row, order)}
        if order is not None or any(len(part["weight"]) % self.rows for part in parts[:-1]):
            return None  # blocks would be torn
        return {"weight": weight, "scale": stacked(scales, None)}

    def decode(self, arrays: Arrays, shape: Shape, dtype: torch.dtype) -> Tensor:
        weight, scale = widened(arrays["weight"]), _exact(arrays["scale"])
        if self.rows is None or self.columns is None or shape[1] % self.columns:
            return weight.mul_(self._spread(scale, shape)).to(dtype)
        rows = scale.repeat_interleave(self.rows, dim=0)[: shape[0]]
        weight.view(shape[0], -1, self.columns).mul_(rows.unsqueeze(-1))
        return weight.to(dtype)


def _exact(scale: Tensor) -> Tensor:
    """A scale of any type in float32."""
    if scale.dtype == torch.uint8:
        scale = scale.view(torch.float8_e8m0fnu)
    return widened(scale) if scale.dtype.itemsize == 1 else scale.to(torch.float32)
