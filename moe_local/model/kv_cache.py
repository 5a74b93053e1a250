"""KV caches that a token is written into.

transformers' `DynamicLayer` copies every key and value to add a token's, and a CPU's matrix library wants lengths
that are rounded up, another copy: with 4,000 tokens, a sixth of a token's time. Here they lie in buffers of such
lengths, zeros at the end, and are copied when one is full.
"""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicLayer

from moe_local.memory.accelerator import on_cpu
from moe_local.model.attention_native import native_append
from moe_local.model.buffers import columns
from moe_local.model.hooks import register_forward_hook
from moe_local.model.transformers_api import CACHE

_BUFFER = "_moe_local_buffer"  # on keys and values: what they are the beginning of
_FILLED = "_moe_local_filled"  # on a buffer: its tokens; who has fewer may not write after them


def with_room(states: Tensor) -> Tensor:
    """Keys or values [B, KV, L, D] and zeros, [B, KV, columns(L) or more, D]: no copy where they lie in a buffer."""
    buffer: Tensor | None = getattr(states, _BUFFER, None)
    return _buffer_of(states, states.shape[-2]) if buffer is None else buffer


class Written(NamedTuple):
    """Where a layer's keys and values lie: addresses of buffers, for how many tokens, and how many are there."""

    keys: int
    values: int
    room: int
    tokens: int


class Lent:
    """Memory that is one layer's for as long as there is that layer."""

    _tenant: weakref.ref[Any] | None = None

    @property
    def tenant(self) -> Any:
        """The layer; None where it is nobody's."""
        return None if self._tenant is None else self._tenant()

    def is_lent_to(self, layer: Any) -> bool:
        """Whether it is this layer's."""
        return self.tenant is layer

    def is_free_for(self, layer: Any) -> bool:
        """Whether it is nobody else's."""
        return self.tenant is None or self.is_lent_to(layer)

    def lend(self, layer: Any) -> None:
        """It is this layer's from now on."""
        self._tenant = weakref.ref(layer)


class FixedMemory(Lent):
    """Where one layer's keys and values of `tokens` tokens lie for good; taken when it is first asked for."""

    def __init__(self, tokens: int) -> None:
        self._tokens = tokens
        self.keys: Tensor | None = None  # [1, KV, tokens, D]
        self.values: Tensor | None = None

    def lend(self, layer: Any) -> None:
        """Its keys and values are to lie here from now on."""
        super().lend(layer)
        layer.fixed = self

    def buffers(self, layer: Any, keys: Tensor, values: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """A layer's memory for keys and values like these, [1, KV, T, D]; None where it is another's."""
        if not self.is_lent_to(layer):  # but to one that it was copied from
            return None, None
        if self.keys is None or self.values is None:
            self.keys, self.values = zeros(keys, self._tokens), zeros(values, self._tokens)
        alike = _are_alike(keys, self.keys) and _are_alike(values, self.values)
        return (self.keys, self.values) if alike else (None, None)

    def holds(self, layer: Any) -> bool:
        """Whether a layer's keys and values lie here."""
        return self.is_lent_to(layer) and _lies_in(layer.keys, self.keys) and _lies_in(layer.values, self.values)

    def beginning(self, tokens: int) -> tuple[Tensor, Tensor]:
        """The keys and values of the first `tokens` tokens here, which are all that are left."""
        assert self.keys is not None and self.values is not None
        return _beginning(self.keys, tokens), _beginning(self.values, tokens)


class GrowingLayer(DynamicLayer):  # type: ignore[misc]
    """A `DynamicLayer` whose `keys` and `values` begin buffers. Other tensors may be put in their place."""

    fixed: FixedMemory | None = None  # where its buffers are to be, if anywhere

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """The next tokens' key_states and value_states [B, KV, T, D] -> all keys and values, [B, KV, L + T, D]."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        fixed = (None, None) if self.fixed is None else self.fixed.buffers(self, key_states, value_states)
        self.keys: Tensor = _appended(self.keys, key_states, fixed[0])
        self.values: Tensor = _appended(self.values, value_states, fixed[1])
        return self.keys, self.values

    def crop(self, *args: Any, **kwargs: Any) -> None:
        """As a `DynamicLayer`'s. What is left stays where it is, if that is for good."""
        super().crop(*args, **kwargs)
        if self.fixed is not None and self.fixed.holds(self):
            self.keys, self.values = self.fixed.beginning(self.keys.shape[-2])

    def written(self) -> Written | None:
        """None where the next token's keys and values would not be written into the buffers that are there."""
        if not self.is_initialized:
            return None
        keys, values, length = _ready(self.keys), _ready(self.values), self.keys.shape[-2]
        if keys is None or values is None or keys.shape[-2] != values.shape[-2] or self.values.shape[-2] != length:
            return None
        return Written(keys.data_ptr(), values.data_ptr(), keys.shape[-2], length)

    def took(self, tokens: int) -> None:
        """So many tokens' keys and values have been written behind the others."""
        self.keys, self.values = _longer(self.keys, tokens), _longer(self.values, tokens)

    def places(self) -> set[int]:
        """The memory that keys and values lie in."""
        return {states.untyped_storage().data_ptr() for states in (self.keys, self.values)}


PLAIN_LAYERS = (DynamicLayer, GrowingLayer)  # that keep every token, and nothing else


def _ready(held: Tensor) -> Tensor | None:
    """The buffer that `held` begins, if the next token's can be written behind it."""
    buffer: Tensor | None = getattr(held, _BUFFER, None)
    length = held.shape[-2]
    if buffer is None or getattr(buffer, _FILLED) != length or length >= buffer.shape[-2]:
        return None
    return None if buffer.is_inference() and not torch.is_inference_mode_enabled() else buffer


def _longer(held: Tensor, tokens: int) -> Tensor:
    """`held` and the tokens that were written behind it."""
    return _beginning(getattr(held, _BUFFER), held.shape[-2] + tokens)


def _beginning(buffer: Tensor, tokens: int) -> Tensor:
    """The first `tokens` of a buffer, which are all that are in it now."""
    setattr(buffer, _FILLED, tokens)
    batch, heads, _, width = buffer.shape
    states = buffer.as_strided((batch, heads, tokens, width), buffer.stride())
    setattr(states, _BUFFER, buffer)
    return states


def _appended(held: Tensor, new: Tensor, fixed: Tensor | None) -> Tensor:
    """held [B, KV, L, D] or empty, new [B, KV, T, D] -> [B, KV, L + T, D], in `fixed` memory if there is any."""
    length = held.shape[-2] if held.numel() else 0
    total = length + new.shape[-2]
    buffer: Tensor | None = getattr(held, _BUFFER, None)
    fits = buffer is not None and total <= buffer.shape[-2] and getattr(buffer, _FILLED) == length
    begun = held if length else new[..., :0, :]
    if fixed is not None and total <= fixed.shape[-2] and not _lies_in(held, fixed):
        buffer = fixed
        buffer[..., :length, :] = begun
    elif buffer is None or not fits or (buffer.is_inference() and not torch.is_inference_mode_enabled()):
        buffer = _buffer_of(begun, total)
    _write(buffer, length, new)
    return _beginning(buffer, total)


def _write(buffer: Tensor, length: int, new: Tensor) -> None:
    """Puts new [B, KV, T, D] behind the `length` tokens of a buffer."""
    batch, heads, tokens, width = new.shape
    append = native_append() if on_cpu(buffer.device) else None
    if append is None or tokens != 1 or new.dtype != buffer.dtype or new.requires_grad:
        buffer[..., length : length + tokens, :] = new
        return
    new = new.contiguous()
    row, size = width * new.element_size(), new.nbytes
    append(batch * heads, buffer.shape[2], length, row, new.data_ptr(), size, buffer.data_ptr(), buffer.nbytes)


def _buffer_of(states: Tensor, length: int) -> Tensor:
    """Room for `length` tokens that begins with `states` [B, KV, L, D]."""
    *shape, held, width = states.shape
    buffer = states.new_empty(*shape, columns(length), width)
    buffer[..., :held, :] = states
    buffer[..., held:, :] = 0
    return buffer


def _lies_in(states: Tensor, buffer: Tensor | None) -> bool:
    """Whether keys or values are the beginning of a buffer."""
    return buffer is not None and states.numel() > 0 and states.data_ptr() == buffer.data_ptr()


@torch.inference_mode(False)  # or nothing could be written to it outside
def zeros(states: Tensor, tokens: int) -> Tensor:
    """Memory for `tokens` tokens like `states` [B, KV, T, D]: numbers, as what is masked is multiplied by zero."""
    batch, heads, _, width = states.shape
    return torch.zeros(batch, heads, tokens, width, dtype=states.dtype, device=states.device)


def _are_alike(states: Tensor, buffer: Tensor) -> bool:
    """Whether a buffer is for tokens like these."""
    batch, heads, _, width = buffer.shape
    return states.shape[:2] == (batch, heads) and states.shape[-1] == width and states.dtype == buffer.dtype


def grow_in_place(model: PreTrainedModel) -> None:
    """Has the plain layers of whatever KV cache this model is given be `GrowingLayer`s."""

    def convert(module: nn.Module, args: tuple[Any, ...], inputs: dict[str, Any]) -> None:
        for layer in getattr(inputs.get(CACHE), "layers", ()):
            if type(layer) is DynamicLayer:
                layer.__class__ = GrowingLayer

    register_forward_hook(model, convert)
