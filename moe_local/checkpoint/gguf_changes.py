"""What llama.cpp's conversion does to some tensors, undone: from the file's numbers to those of Hugging Face's.

Each change takes the tensors of a file that it needs, in the order that the architecture names them, and numbers of
the model; shapes in torch's order. It works on meta tensors too, which tells the shape before anything is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Change = Callable[..., Tensor]


def _decay(a: Tensor) -> Tensor:
    """A of a state space -> the logarithm that it is learned as."""
    return torch.log(-a)


def _vector_of_decays(a: Tensor) -> Tensor:
    return _decay(a).reshape(-1)


def _decays_of_heads(a: Tensor) -> Tensor:
    return _decay(a).reshape(1, 1, -1, 1)


def _filters(x: Tensor) -> Tensor:
    """Of a convolution, however many axes of length 1 there are -> [channels, 1, length]."""
    return x.reshape(-1, 1, x.shape[-1])


def _vector(x: Tensor) -> Tensor:
    return x.reshape(-1)


def _one_row(x: Tensor) -> Tensor:
    return x.reshape(1, -1)


def _less_one(x: Tensor) -> Tensor:
    """A norm's weight that Hugging Face's model adds to one."""
    return x - 1


def _below_each_other(*parts: Tensor) -> Tensor:
    return torch.cat(parts)


def _kv_b(k_b: Tensor, v_b: Tensor) -> Tensor:
    """Keys [heads, rank, width] and values [heads, width, rank] out of the latent -> [heads * both widths, rank]."""
    both = torch.cat([k_b.transpose(1, 2), v_b], dim=1)
    return both.reshape(-1, both.shape[2])


def _by_key_head(qkv: Tensor, z: Tensor, *, key_heads: int) -> Tensor:
    """All queries, all keys, all values; all gates -> the four of each key head together."""
    keys = (qkv.shape[0] - z.shape[0]) // 2
    parts = [*torch.split(qkv, [keys, keys, z.shape[0]]), z]
    return torch.cat([part.reshape(key_heads, -1, part.shape[1]) for part in parts], dim=1).reshape(-1, qkv.shape[1])


def _grouped(x: Tensor, *, key_heads: int, value_heads: int, width: int, before: int = 0) -> Tensor:
    """Value heads of `width` rows each, after `before` others: from the key heads' in turns to each.s together."""
    rest = x[before:].reshape(value_heads // key_heads, key_heads, width, *x.shape[1:])
    return torch.cat([x[:before], rest.transpose(0, 1).reshape(-1, *x.shape[1:])])


def _grouped_columns(x: Tensor, **numbers: int) -> Tensor:
    return _grouped(x.transpose(0, 1), **numbers).transpose(0, 1)


def _grouped_decays(a: Tensor, **numbers: int) -> Tensor:
    return _grouped(_decay(a), **numbers)


def _grouped_filters(x: Tensor, **numbers: int) -> Tensor:
    """Filters of a convolution [channels, length] -> [channels, 1, length]."""
    return _grouped(x, **numbers).unsqueeze(1)


CHANGES: Mapping[str, Change] = {
    "decay": _decay,
    "vector-of-decays": _vector_of_decays,
    "decays-of-heads": _decays_of_heads,
    "filters": _filters,
    "vector": _vector,
    "one-row": _one_row,
    "less-one": _less_one,
    "below-each-other": _below_each_other,
    "kv-b": _kv_b,
    "by-key-head": _by_key_head,
    "grouped": _grouped,
    "grouped-columns": _grouped_columns,
    "grouped-decays": _grouped_decays,
    "grouped-filters": _grouped_filters,
}
