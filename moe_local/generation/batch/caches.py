"""transformers' KV caches of several sequences: taking sequences out, putting caches together.

Sequences are aligned at their last token and padded on the left. Layers that attend keep a column for each token
(with a sliding window, for the last of them); recurrent layers keep a state for each sequence.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import (
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionLayer,
)

from moe_local.model.kv_cache import PLAIN_LAYERS
from moe_local.model.transformers_api import kv_cache

_ATTENDS = (*PLAIN_LAYERS, DynamicSlidingWindowLayer, LinearAttentionAndFullAttentionLayer)
_RECURS = (LinearAttentionLayer, LinearAttentionAndFullAttentionLayer)
_STATES = ("conv_states", "recurrent_states")


@torch.inference_mode()
def cache_of(model: PreTrainedModel) -> Any:
    """A cache as this model makes it, of one token: some make their own kinds."""
    ids = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    return kv_cache(model(input_ids=ids, use_cache=True))


def can_join(cache: Any) -> bool:
    """Whether sequences can share this kind of cache: all its layers are of kinds that are known here."""
    kinds = {*_ATTENDS, *_RECURS}
    return type(cache) is DynamicCache and bool(cache.layers) and all(type(layer) in kinds for layer in cache.layers)


def can_pad(cache: Any) -> bool:
    """Whether sequences of different lengths can be computed at once: recurrent states would take in the padding."""
    return can_join(cache) and not any(isinstance(layer, _RECURS) for layer in cache.layers)


def can_branch(cache: Any) -> bool:
    """Whether several sequences can go on from one: every layer keeps every token."""
    return can_join(cache) and all(type(layer) in PLAIN_LAYERS and _attends(layer) for layer in cache.layers)


def select(cache: Any, sequences: Tensor) -> None:
    """Keeps `sequences` [n] int64 of those in the cache, in that order."""
    for layer in cache.layers:
        _select(layer, sequences)


def _select(layer: Any, sequences: Tensor) -> None:
    if _attends(layer):
        layer.keys, layer.values = layer.keys[sequences], layer.values[sequences]
    for holder, name in _states(layer):
        holder[name] = holder[name][sequences]


def join(caches: Sequence[Any], columns: Sequence[Sequence[Tensor]], length: int) -> Any:
    """One cache of `length` columns with the sequences of several, emptied.

    `columns` says for each sequence of each cache which of its columns are tokens (int64); there is padding nowhere
    but on the left afterwards.
    """
    first, *others = caches
    for index, layer in enumerate(first.layers):
        layers = [layer, *(cache.layers[index] for cache in others)]
        if _attends(layer):
            for name in ("keys", "values"):
                setattr(layer, name, _aligned([getattr(each, name) for each in layers], columns, layer, length))
            for each in layers[1:]:
                each.keys = each.values = None
            if isinstance(layer, DynamicSlidingWindowLayer):
                layer.cumulative_length = length
        for holders in zip(*(_states(each) for each in layers), strict=True):
            target, name = holders[0]
            target[name] = torch.cat([holder[key] for holder, key in holders])
    return first


def _aligned(tensors: Sequence[Tensor], columns: Sequence[Sequence[Tensor]], layer: Any, length: int) -> Tensor:
    """Tensors [B, H, L, D] -> [all sequences, H, length or window, D], each with its last token at the end."""
    kept = min(length, layer.sliding_window - 1) if isinstance(layer, DynamicSlidingWindowLayer) else length
    total = sum(len(each) for each in columns)
    _, heads, _, width = tensors[0].shape
    out = tensors[0].new_zeros(total, heads, kept, width)
    number = 0
    for tensor, places in zip(tensors, columns, strict=True):
        for index, at in enumerate(places):
            count = min(len(at), kept, tensor.shape[2])
            if isinstance(layer, DynamicSlidingWindowLayer):  # its columns are the last ones
                found = tensor[index, :, tensor.shape[2] - count :]
            else:
                found = tensor[index][:, at[len(at) - count :]]
            out[number, :, kept - count :] = found
            number += 1
    return out


def branch(cache: Any, count: int) -> DynamicCache:
    """`count` sequences that begin as the one in `cache` did; it stays as it is."""
    data = [(layer.keys.expand(count, -1, -1, -1), layer.values.expand(count, -1, -1, -1)) for layer in cache.layers]
    return DynamicCache(data)


def beginning(cache: Any, row: int, columns: Tensor) -> Any:
    """A cache of its own with one sequence of those in `cache`, which stays as it is: its tokens at `columns` int64.

    These are all of the sequence's, or of a cache that `can_branch` the first of them.
    """
    one = copy.copy(cache)
    one.layers = [_alone(cache, layer, row, columns) for layer in cache.layers]
    return one


def take_out(cache: Any, leaving: Sequence[tuple[int, Tensor]], rest: Tensor) -> list[Any]:
    """Caches of their own for sequences of `cache`, (row, columns of its tokens) each; `rest` [n] stays in it.

    Layer by layer, so that little is there twice.
    """
    made = [copy.copy(cache) for _ in leaving]
    for one in made:
        one.layers = []
    for layer in cache.layers:
        for one, (row, columns) in zip(made, leaving, strict=True):
            one.layers.append(_alone(cache, layer, row, columns))
        _select(layer, rest)
    return made


def _alone(cache: Any, layer: Any, row: int, columns: Tensor) -> Any:
    """A layer with one sequence of another, copied."""
    one = copy.copy(cache)
    one.layers = [_row_of(layer, row)]
    return join([one], [[columns]], len(columns)).layers[0]


def _row_of(layer: Any, row: int) -> Any:
    """A layer of the same kind that sees one sequence of it."""
    one = copy.copy(layer)
    if _attends(one):
        one.keys, one.values = one.keys[row : row + 1], one.values[row : row + 1]
    for name in _STATES:
        if isinstance(held := getattr(one, name, None), dict):
            setattr(one, name, dict(held))
    for holder, name in _states(one):
        holder[name] = holder[name][row : row + 1].clone()
    return one


def _attends(layer: Any) -> bool:
    """Whether it holds keys and values: of layers that share them, one does."""
    return isinstance(layer, DynamicLayer) and isinstance(getattr(layer, "keys", None), Tensor)


def _states(layer: Any) -> Iterator[tuple[dict[Any, Any], Any]]:
    """Where the recurrent states are held: (mapping, key)."""
    for name in _STATES:
        value = getattr(layer, name, None)
        if isinstance(value, Tensor):
            yield vars(layer), name
        elif isinstance(value, dict):
            yield from ((value, key) for key, state in value.items() if isinstance(state, Tensor))
