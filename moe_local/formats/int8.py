"""int8 with one scale for each row: laid out for dots, or row by row for embeddings."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from moe_local.formats.base import Arrays, Packable, Shape, row_chunks

BLOCK = 16  # rows
GROUP = 64  # columns: they are filled up with zeros to a multiple of it


class Int8(Packable):
    """Symmetric, round to nearest, in blocks of 16 rows, the last filled up with zeros.

    `blocks` [blocks, 16 * in + 64] uint8, with 64 bytes for 4 columns (byte 4 r + j holds column j of row r, signed),
    then 16 scales in float32.
    """

    def encode(self, weight: Tensor) -> dict[str, Tensor]:
        codes, scales = _encoded(weight)
        out, width = codes.shape
        padded = F.pad(codes, (0, -width % GROUP, 0, -out % BLOCK))
        blocks = padded.view(-1, BLOCK, padded.shape[1] // 4, 4).transpose(1, 2).reshape(-1, BLOCK * padded.shape[1])
        raw = F.pad(scales.float(), (0, -out % BLOCK)).view(-1, BLOCK).view(torch.uint8)
        return {"blocks": torch.cat([blocks.view(torch.uint8), raw], dim=1)}

    divisible = True

    def row_part(self, arrays: Arrays, start: int, stop: int) -> Arrays:
        return {"blocks": arrays["blocks"][start // BLOCK : -(-stop // BLOCK)]}

    def decode(self, arrays: Arrays, shape: Shape, dtype: torch.dtype) -> Tensor:
        blocks = arrays["blocks"]
        codes = blocks[:, : -4 * BLOCK].view(torch.int8).view(len(blocks), -1, BLOCK, 4).transpose(1, 2).flatten(2)
        scales = blocks[:, -4 * BLOCK :].contiguous().view(torch.float32).flatten()[: shape[0]]
        weight: Tensor = codes.flatten(0, 1)[: shape[0], : shape[1]].to(dtype) * scales.to(dtype)[:, None]
        return weight


class Int8Rows(Packable):
    """The same numbers as `Int8` has: `weight` [out, in] int8, `scales` [out] bf16."""

    def encode(self, weight: Tensor) -> dict[str, Tensor]:
        codes, scales = _encoded(weight)
        return {"weight": codes, "scales": scales}

    def decode(self, arrays: Arrays, shape: Shape, dtype: torch.dtype) -> Tensor:
        weight: Tensor = arrays["weight"].to(dtype) * arrays["scales"].to(dtype)[:, None]
        return weight


def int8(layout: str = "blocks") -> Packable:
    """The format in `blocks` or `rows`. Raises ValueError for another layout."""
    if layout not in ("blocks", "rows"):
        raise ValueError(f"int8 in {layout}")
    return Int8() if layout == "blocks" else Int8Rows()


def _encoded(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Codes [out, in] int8 and scales [out] bf16."""
    chunks = [_fit(rows) for rows in row_chunks(weight)]
    codes, scales = (torch.cat(parts) for parts in zip(*chunks, strict=True))
    return codes, scales


def _fit(weight: Tensor) -> tuple[Tensor, Tensor]:
    wide = weight.float()
    scales = (wide.abs().amax(dim=1) / 127).clamp(min=torch.finfo(torch.bfloat16).tiny).to(torch.bfloat16)
    codes = (wide / scales.float()[:, None]).round_().clamp_(-127, 127)
    return codes.to(torch.int8), scales
