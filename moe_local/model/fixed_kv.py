"""A KV cache that stays where it is, for one conversation at a time: what recordings of a device's work need."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import Cache
from transformers.cache_utils import StaticLayer

from moe_local.model.kv_cache import PLAIN_LAYERS, FixedMemory, GrowingLayer


class FixedKV:
    """Memory for the keys and values of `tokens` tokens, which is the same for one conversation after the other."""

    def __init__(self, tokens: int) -> None:
        self._tokens = tokens
        self._layers: list[FixedMemory] = []

    def lend(self, cache: Any) -> None:
        """Has a KV cache lie here from its next token on, where it can and no other one's is in use."""
        layers = getattr(cache, "layers", ())
        if any(type(layer) not in PLAIN_LAYERS for layer in layers):
            return
        while len(self._layers) < len(layers):
            self._layers.append(FixedMemory(self._tokens))
        if all(memory.is_free_for(layer) for layer, memory in zip(layers, self._layers, strict=False)):
            for layer, memory in zip(layers, self._layers, strict=False):
                memory.lend(layer)

    def length(self, cache: Any) -> int | None:
        """How many tokens of a KV cache lie here; None where not all of it does, or there is no room for another."""
        layers = getattr(cache, "layers", ())
        if not layers or len(layers) != len(self._layers):
            return None
        lengths = set()
        for layer, memory in zip(layers, self._layers, strict=True):
            written = layer.written() if type(layer) is GrowingLayer else None
            if written is None or not memory.holds(layer):
                return None
            lengths.add(written.tokens)
        return lengths.pop() if len(lengths) == 1 else None

    def view(self, room: int, position: Tensor) -> Cache:
        """A cache of the first `room` tokens' memory, into which a token is written at `position`, int64 [1]."""
        layers = []
        for memory in self._layers:
            assert memory.keys is not None and memory.values is not None
            layers.append(FixedLayer(memory.keys[:, :, :room], memory.values[:, :, :room], position))
        return Cache(layers=layers)


class FixedLayer(StaticLayer):  # type: ignore[misc]
    """transformers' `StaticLayer` over memory of others', whose next token's place is theirs to say."""

    def __init__(self, keys: Tensor, values: Tensor, position: Tensor) -> None:
        """keys and values [1, KV, R, D]; position int64 [1], on their device."""
        super().__init__(max_cache_len=keys.shape[-2])
        self.keys, self.values, self._position = keys, values, position
        self.device, self.cumulative_length, self.is_initialized = keys.device, position[0], True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """A token's key_states and value_states [1, KV, 1, D] -> all keys and values, [1, KV, R, D]."""
        self.keys.index_copy_(2, self._position, key_states)
        self.values.index_copy_(2, self._position, value_states)
        return self.keys, self.values
