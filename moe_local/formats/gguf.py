"""The block formats of GGUF files (`Q4_K`, `Q8_0`, `MXFP4` ...), decoded by the `gguf` package: exact, and slow.

Formats: https://github.com/ggml-org/llama.cpp/blob/master/ggml/src/ggml-common.h.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_local.formats.base import Arrays, Format, Shape

_ELEMENTS = 1 << 20  # decoded at a time: the float32 numbers of a whole embedding would not fit the budget


class Gguf(Format):
    """`blocks` [out, bytes of a row] uint8.

    llama.cpp keeps the query and key rows of some architectures with the two halves of each of `rotary_heads` heads
    interleaved; they are put back side by side, which is how Hugging Face's rotary embedding has them.
    """

    def __init__(self, type: str, rotary_heads: int = 0) -> None:
        self.type = type
        self.rotary_heads = rotary_heads

    def decode(self, arrays: Arrays, shape: Shape, dtype: torch.dtype) -> Tensor:
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        kind = GGMLQuantizationType[self.type]

        blocks = arrays["blocks"]
        out = torch.empty(shape, dtype=dtype)
        step = max(1, _ELEMENTS // shape[1])
        for row in range(0, shape[0], step):
            numbers = dequantize(blocks[row : row + step].cpu().numpy(), kind)
            out[row : row + step] = torch.from_numpy(numbers)
        if self.rotary_heads:
            halves = out.view(self.rotary_heads, shape[0] // self.rotary_heads // 2, 2, shape[1])
            out = halves.transpose(1, 2).reshape(shape)
        return out.to(blocks.device)
