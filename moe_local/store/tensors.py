"""Whole tensors from disk into memory: for what is loaded once, not paged."""

from __future__ import annotations

import torch
from torch import Tensor

from moe_local.checkpoint.record import EncodedTensor, Source
from moe_local.formats.records import decode_tensor
from moe_local.memory.files import ReadAt
from moe_local.memory.pages import allocate


def read_tensor(source: Source, read_at: ReadAt, dtype: torch.dtype) -> Tensor:
    """A tensor of the checkpoint as it is, or decoded to `dtype` if it is encoded."""
    if isinstance(source, EncodedTensor):
        return decode_tensor(source, read_arrays(source, read_at), dtype)
    raw = allocate(source.length)
    read_at(source.file, source.offset, raw.numpy().data)
    return raw.view(source.dtype).view(source.shape)


def read_arrays(source: EncodedTensor, read_at: ReadAt) -> dict[str, Tensor]:
    """The arrays of an encoded tensor, as they are."""
    return {name: read_tensor(part, read_at, part.dtype) for name, part in source.parts.items()}
