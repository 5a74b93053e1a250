"""int4 in groups of columns, laid out for dots: one layout for every processor.

`blocks` [out / 16, in / group, 8 * group + 64] uint8. A block has 16 rows; for each group of its columns lie side by
side: the codes, 64 bytes for 8 columns (byte 4 r + j holds column j of row r in its low and column 4 + j in its high
half), then 16 scales s, then 16 offsets z in bf16. A number is `(code - 8) * s + z`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_local.formats.base import Affine, Arrays, HasAffine, Packable, Shape, row_chunks

BLOCK = 16  # rows


class Int4(Packable, HasAffine):
    """Group-wise affine; matrices of whole blocks and groups."""

    def __init__(self, group: int) -> None:
        self.group = group

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
        """Of codes [out, in] uint8, scales and offsets [out, groups] bf16."""
        blocks = len(codes) // BLOCK
        halves = codes.view(blocks, BLOCK, -1, self.group // 8, 2, 4)
        joined = (halves[..., 0, :] | halves[..., 1, :] << 4).permute(0, 2, 3, 1, 4)  # [.., groups, steps, 16, 4]
        groups = joined.shape[1]
        beside = torch.stack([scales, offsets], dim=2).view(blocks, BLOCK, groups, 2).permute(0, 2, 3, 1)
        raw = beside.contiguous().view(blocks, groups, 2 * BLOCK).view(torch.uint8)
        return {"blocks": torch.cat([joined.reshape(blocks, groups, 8 * self.group), raw], dim=2)}

    def _codes(self, blocks: Tensor, shape: Shape) -> Tensor:
        """Codes [out, in] uint8."""
        joined = blocks[..., : 8 * self.group].view(*blocks.shape[:2], self.group // 8, BLOCK, 4)
        halves = torch.stack([joined & 15, joined >> 4], dim=4)  # [blocks, groups, steps, 16, 2, 4]
        return halves.permute(0, 3, 1, 2, 4, 5).reshape(shape)

    def _beside(self, blocks: Tensor) -> Tensor:
        """Scales and offsets [2, out, groups] bf16."""
        raw = blocks[..., 8 * self.group :].contiguous().view(torch.bfloat16)
        return raw.view(*blocks.shape[:2], 2, BLOCK).permute(2, 0, 3, 1).flatten(1, 2)

    divisible = True

    def row_part(self, arrays: Arrays, start: int, stop: int) -> Arrays:
        return {"blocks": arrays["blocks"][start // BLOCK : -(-stop // BLOCK)]}

    def decode(self, arrays: Arrays, shape: Shape, dtype: torch.dtype) -> Tensor:
        blocks = arrays["blocks"]
        codes = self._codes(blocks, shape).view(shape[0], -1, self.group).to(dtype)
        scale, offset = self._beside(blocks).to(dtype)[..., None]  # [out, groups, 1] each
        return codes.sub_(8).mul_(scale).add_(offset).flatten(1)

    def affine(self, arrays: Arrays, shape: Shape) -> Affine:
        scales, offsets = self._beside(arrays["blocks"]).float()
        return Affine(self._codes(arrays["blocks"], shape), scales, 8 - offsets / scales, bits=4)

    def hold(self, affine: Affine) -> dict[str, Tensor]:
        """Arrays of the very same integers; scales are rounded to bf16."""
        offsets = (8 - affine.zeros) * affine.scales
        return self._arrays(affine.codes, affine.scales.to(torch.bfloat16), offsets.to(torch.bfloat16))


def _round(wide: Tensor, scale: Tensor, low: Tensor) -> Tensor:
    """The nearest codes 0 to 15 of [out, groups, group], as floats."""
    return wide.sub(low[..., None]).div_(scale[..., None]).round_().clamp_(0, 15)
