"""Where each kind of a KV cache's layers lies for good, and how a recording sees it."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer, LinearAttentionLayer, StaticLayer

from moe_local.model.kv_cache import FixedMemory, GrowingLayer, Lent, zeros

ANY = -1  # tokens, of a layer that does not count them


class Place(Lent, ABC):
    """Memory for one layer's state. Its layer computes there too, or is given the state back before it computes."""

    @abstractmethod
    def __init__(self, tokens: int) -> None:
        """For the state of up to so many tokens."""

    @abstractmethod
    def take(self, layer: Any) -> int | None:
        """Brings its layer's state here, if it is not; tokens that are in it, or `ANY`. None where it cannot be here,
        or has no room for the next one's.
        """

    @abstractmethod
    def view(self, layer: Any, room: int, position: Tensor) -> Any:
        """A layer over this memory, for the token at `position`, int64 [1], of no more than `room`."""

    @abstractmethod
    def took(self, layer: Any, tokens: int) -> None:
        """So many tokens have been computed here."""

    def give_back(self, layer: Any) -> None:
        """Has the layer itself hold its state, which it will go on with."""

    @abstractmethod
    def snapshot(self, layer: Any) -> Any:
        """The state of its layer, which is here: what the next token will change of it."""

    @abstractmethod
    def restore(self, layer: Any, snapshot: Any) -> None:
        """The state is again as it was, unless more than one token has come since."""

    def is_followed(self, view: Any) -> bool:
        """Whether what a view was given to keep has come here."""
        return True


class GrowingPlace(FixedMemory, Place):
    """Of a layer that keeps every token. It writes here itself."""

    def take(self, layer: Any) -> int | None:
        written = layer.written() if type(layer) is GrowingLayer else None
        return written.tokens if written is not None and self.holds(layer) else None

    def view(self, layer: Any, room: int, position: Tensor) -> StaticLayer:
        assert self.keys is not None and self.values is not None
        return GrowingView(self.keys[:, :, :room], self.values[:, :, :room], position)

    def took(self, layer: Any, tokens: int) -> None:
        layer.took(tokens)

    def snapshot(self, layer: Any) -> tuple[Tensor, Tensor, int]:
        return layer.keys[:, :, -1:].clone(), layer.values[:, :, -1:].clone(), layer.keys.shape[2]

    def restore(self, layer: Any, snapshot: tuple[Tensor, Tensor, int]) -> None:
        *last, tokens = snapshot
        layer.keys, layer.values = self.beginning(tokens)
        for states, each in zip((layer.keys, layer.values), last, strict=True):
            states[:, :, -1:] = each


class SlidingPlace(Place):
    """Of a layer that keeps a window of tokens: a ring, where a token takes the place of the one that leaves.

    The layer's own tensors are empty from the first token that is computed here until they are given back.
    """

    def __init__(self, tokens: int) -> None:
        self._most = tokens
        self._current = False  # whether the layer's state is here
        self._ring: tuple[Tensor, Tensor] | None = None  # keys and values [1, KV, R, D]

    def lend(self, layer: Any) -> None:
        self._current = self._current and self.is_lent_to(layer)
        super().lend(layer)

    def take(self, layer: Any) -> int | None:
        tokens: int = layer.cumulative_length
        if not tokens or tokens >= self._most or getattr(layer, "record_past", False):
            return None
        if not self._current:
            size = min(layer.sliding_window, self._most)
            self._ring = self._ring or (zeros(layer.keys, size), zeros(layer.values, size))
            slots = self._slots(layer)
            for ring, held in zip(self._ring, (layer.keys, layer.values), strict=True):
                ring[:, :, slots] = held[:, :, held.shape[2] - len(slots) :]
            self._current = True
        return tokens

    def _slots(self, layer: Any) -> Tensor:
        """Where the tokens are that the layer itself would keep, in their order, int64 [n]."""
        assert self._ring is not None
        size, tokens = self._ring[0].shape[2], layer.cumulative_length
        kept = min(tokens, layer.sliding_window - 1, size)
        return torch.arange(tokens - kept, tokens, device=self._ring[0].device) % size

    def view(self, layer: Any, room: int, position: Tensor) -> StaticLayer:
        assert self._ring is not None
        return SlidingView(*self._ring, position)

    def took(self, layer: Any, tokens: int) -> None:
        layer.cumulative_length += tokens
        layer.keys, layer.values = (states[:, :, :0].clone() for states in (layer.keys, layer.values))

    def give_back(self, layer: Any) -> None:
        if self._current and self._ring is not None:
            slots = self._slots(layer)
            layer.keys, layer.values = (ring.index_select(2, slots) for ring in self._ring)
            self._current = False

    def snapshot(self, layer: Any) -> tuple[int, Tensor, Tensor]:
        return layer.cumulative_length, layer.keys, layer.values

    def restore(self, layer: Any, snapshot: tuple[int, Tensor, Tensor]) -> None:
        """A token's slot in the ring was that of one that the layer would not keep."""
        layer.cumulative_length, layer.keys, layer.values = snapshot


class RecurrentPlace(Place):
    """Of a layer that keeps states of one size. It changes them here itself."""

    def __init__(self, tokens: int) -> None:
        self._states: dict[tuple[str, int], Tensor] = {}  # by the layer's names and numbers of them

    def take(self, layer: Any) -> int | None:
        if not all(layer.has_previous_state.values()) or getattr(layer, "record_past", False):
            return None
        for (name, number), state in _states(layer).items():
            getattr(layer, name)[number] = self._brought((name, number), state)
        return ANY

    def _brought(self, key: tuple[str, int], state: Tensor) -> Tensor:
        here = self._states.get(key)
        if here is state:
            return here
        if here is None or here.shape != state.shape or here.dtype != state.dtype:
            with torch.inference_mode(False):
                here = self._states[key] = torch.empty_like(state)
        return here.copy_(state)

    def view(self, layer: Any, room: int, position: Tensor) -> Any:
        view = copy.copy(layer)
        for name, value in vars(layer).items():
            if isinstance(value, dict):
                vars(view)[name] = dict(value)
        return view

    def took(self, layer: Any, tokens: int) -> None:
        pass

    def snapshot(self, layer: Any) -> dict[tuple[str, int], Tensor]:
        return {key: state.clone() for key, state in self._states.items()}

    def restore(self, layer: Any, snapshot: dict[tuple[str, int], Tensor]) -> None:
        for key, state in snapshot.items():
            self._states[key].copy_(state)

    def is_followed(self, view: Any) -> bool:
        return all(self._states.get(key) is state for key, state in _states(view).items())


PLACES: dict[type[Any], type[Place]] = {
    DynamicLayer: GrowingPlace,
    GrowingLayer: GrowingPlace,
    DynamicSlidingWindowLayer: SlidingPlace,
    LinearAttentionLayer: RecurrentPlace,
}


def _states(layer: Any) -> dict[tuple[str, int], Tensor]:
    """The states of a recurrent layer, by where it has them."""
    named = {name: getattr(layer, name) for name in ("conv_states", "recurrent_states")}
    return {(name, n): state for name, held in named.items() for n, state in held.items() if state is not None}


class _View(StaticLayer):  # type: ignore[misc]
    """transformers' `StaticLayer` over memory of others', whose next token's place is theirs to say."""

    def __init__(self, keys: Tensor, values: Tensor, position: Tensor) -> None:
        """keys and values [1, KV, R, D]; position int64 [1], on their device."""
        super().__init__(max_cache_len=keys.shape[-2])
        self.keys, self.values, self._position = keys, values, position
        self.device, self.cumulative_length, self.is_initialized = keys.device, position[0], True


class GrowingView(_View):
    """In which every token has a place of its own."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """A token's key_states and value_states [1, KV, 1, D] -> all keys and values, [1, KV, R, D]."""
        self.keys.index_copy_(2, self._position, key_states)
        self.values.index_copy_(2, self._position, value_states)
        return self.keys, self.values


class SlidingView(_View):
    """In which a token takes the place of the one that leaves the window."""

    is_sliding = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """A token's key_states and value_states [1, KV, 1, D] -> those of the window, in order, [1, KV, R, D]."""
        size = self.max_cache_len
        self.keys.index_copy_(2, self._position % size, key_states)
        self.values.index_copy_(2, self._position % size, value_states)
        order = (torch.arange(size, device=self.keys.device) + self._first()) % size
        return self.keys.index_select(2, order), self.values.index_select(2, order)

    def get_mask_sizes(self, query_length: int) -> tuple[int, Tensor]:
        """Keys that are seen, and the first one's position."""
        return self.max_cache_len, self._first()

    def _first(self) -> Tensor:
        """The position of the first token in the window, int64 []."""
        first: Tensor = (self._position[0] + 1 - self.max_cache_len).clamp(min=0)
        return first
