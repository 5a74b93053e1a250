"""int4 in groups of columns, in the layout of torch's CPU kernel: a record is multiplied as it was read.

`weight` [out, in / 2] uint8: for blocks of `rows` rows, column by column, byte j holds row j in its low and row
j + rows / 2 in its high half. `scales` [in / group, out, 2] bf16: scale s and offset z of `(code - 8) * s + z`.
The kernel is `aten::_weight_int4pack_mm_for_cpu`, whose blocks are as wide as two registers of the processor.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_local.formats.base import Affine, Arrays, HasAffine, Packable, Shape, row_chunks
from moe_local.memory.accelerator import cpu_capability


def native_rows() -> int:
    """The block of this processor's kernel."""
    return {"AVX512": 64, "AVX2": 32}.get(cpu_capability(), 0)


class Int4(Packable, HasAffine):
    """Group-wise affine, `rows` being the block of the machine that it was packed on."""

    def __init__(self, group: int, rows: int) -> None:
        self.group = group
        self.rows = rows

    def encode(self, weight: Tensor) -> dict[str, Tensor]:
        chunks = [self._fit(rows) for rows in row_chunks(weight)]
        codes, scales, offsets = (torch.cat(parts) for parts in zip(*chunks, strict=True))
        return self._arrays(codes, scales, offsets)

    def _fit(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Codes [out, in] uint8; scales and offsets [out, groups] bf16.

        The codes span from the least to the greatest number of a group; then scale and offset are fitted to these
        codes by least squares, and the numbers are rounded to them again.
        """
        wide = weight.float().view(len(weight), -1, self.group)  # [out, groups, group]
        low, high = wide.amin(dim=2), wide.amax(dim=2)  # each many times faster than aminmax
        scale = ((high - low) / 15).clamp_(min=1e-30)
        codes = _round(wide, scale, low)
        mean, level = wide.mean(dim=2), codes.mean(dim=2)
        square = (codes * codes).mean(dim=2) - level * level
        fitted = ((codes * wide).mean(dim=2) - level * mean) / square
        scale = torch.where(square > 0, fitted, scale).to(torch.bfloat16)
        offset = (mean - (level - 8) * scale.float()).to(torch.bfloat16)
        codes = _round(wide, scale.float(), offset.float() - 8 * scale.float())
        return codes.to(torch.uint8).flatten(1), scale, offset

    def _arrays(self, codes: Tensor, scales: Tensor, offsets: Tensor) -> dict[str, Tensor]:
        return {
            "weight": self._pack(codes),
            "scales": torch.stack([scales, offsets], dim=2).transpose(0, 1).contiguous(),
        }

    def _pack(self, codes: Tensor) -> Tensor:
        out, width = codes.shape
        blocks = codes.view(out // self.rows, 2, self.rows // 2, width)
        joined = blocks[:, 0] | (blocks[:, 1] << 4)  # [blocks, rows / 2, in]
        packed: Tensor = joined.transpose(1, 2).contiguous().view(out, width // 2)
        return packed

    def _unpack(self, packed: Tensor, shape: Shape) -> Tensor:
        """Codes [out, in] uint8."""
        out, width = shape
        joined = packed.view(out // self.rows, width, self.rows // 2).transpose(1, 2)  # [blocks, rows / 2, in]
        return torch.stack([joined & 15, joined >> 4], dim=1).view(shape)

    def decode(self, arrays: Arrays, shape: Shape, dtype: torch.dtype) -> Tensor:
        codes = self._unpack(arrays["weight"], shape).view(shape[0], -1, self.group).to(dtype)
        scale, offset = arrays["scales"].to(dtype).permute(2, 1, 0)[..., None]  # [out, groups, 1] each
        return codes.sub_(8).mul_(scale).add_(offset).flatten(1)

    def affine(self, arrays: Arrays, shape: Shape) -> Affine:
        scales, offsets = arrays["scales"].float().permute(2, 1, 0)
        return Affine(self._unpack(arrays["weight"], shape), scales, 8 - offsets / scales, bits=4)

    def hold(self, affine: Affine) -> dict[str, Tensor]:
        """Arrays of the very same integers; scales are rounded to bf16."""
        offsets = (8 - affine.zeros) * affine.scales
        return self._arrays(affine.codes, affine.scales.to(torch.bfloat16), offsets.to(torch.bfloat16))


def _round(wide: Tensor, scale: Tensor, low: Tensor) -> Tensor:
    """The nearest codes 0 to 15 of [out, groups, group], as floats."""
    return wide.sub(low[..., None]).div_(scale[..., None]).round_().clamp_(0, 15)
