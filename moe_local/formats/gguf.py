"""The block formats of GGUF files (`Q4_K`, `Q8_0`, `MXFP4` ...), decoded by the `gguf` package: exact, and slow.

Formats: https://github.com/ggml-org/llama.cpp/blob/master/ggml/src/ggml-common.h.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_local.checkpoint.gguf_changes import CHANGES
from moe_local.formats.base import Arrays, Format, Shape, Whole

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
        out = _numbers(arrays["blocks"], self.type, dtype)
        if self.rotary_heads:
            halves = out.view(self.rotary_heads, shape[0] // self.rotary_heads // 2, 2, shape[1])
            out = halves.transpose(1, 2).reshape(shape)
        return out.to(arrays["blocks"].device)


class Changed(Whole):
    """Tensors of a file, `0`, `1` ... , that one of the model was made into: blocks, or numbers where it has such.

    `types` are theirs, with `+` between; `change` is what undoes it (see `gguf_changes`), with its numbers.
    """

    def __init__(self, change: str, types: str, **numbers: int) -> None:
        self.change = change
        self.types = types.split("+")
        self.numbers = numbers

    def tensor(self, arrays: Arrays, dtype: torch.dtype) -> Tensor:
        parts = [_part(arrays[str(number)], kind, dtype) for number, kind in enumerate(self.types)]
        changed: Tensor = CHANGES[self.change](*parts, **self.numbers)
        return changed.contiguous().to(arrays["0"].device, dtype)


def _part(array: Tensor, kind: str, dtype: torch.dtype) -> Tensor:
    """Vectors in float32: some are calculated with."""
    if array.dtype == torch.uint8:
        return _numbers(array, kind, dtype)
    return array.cpu().to(dtype if array.ndim > 1 and array.dtype != torch.float32 else torch.float32)


def _numbers(blocks: Tensor, kind: str, dtype: torch.dtype) -> Tensor:
    """[..., bytes of a row] -> [..., numbers of a row]."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import dequantize

    quantization = GGMLQuantizationType[kind]
    elements, size = GGML_QUANT_SIZES[quantization]
    rows = blocks.reshape(-1, blocks.shape[-1])
    out = torch.empty(len(rows), rows.shape[1] // size * elements, dtype=dtype)
    step = max(1, _ELEMENTS // out.shape[1])
    for row in range(0, len(rows), step):
        numbers = dequantize(rows[row : row + step].cpu().numpy(), quantization)
        out[row : row + step] = torch.from_numpy(numbers)
    return out.view(*blocks.shape[:-1], -1)
