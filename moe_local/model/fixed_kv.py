"""A KV cache that stays where it is, for one conversation at a time: what recordings of a device's work need."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor
from transformers import Cache

from moe_local.model.fixed_places import ANY, PLACES, Place


class FixedKV:
    """Memory for the state of conversations of up to `tokens` tokens, the same for one after the other."""

    def __init__(self, tokens: int) -> None:
        self._most = tokens
        self._places: list[Place] = []
        self._known: tuple[weakref.ref[Any], int] | None = None  # a cache that is here, and which layer of it counts
        self._tokens = 0  # that are in it
        self._behind = 0  # of them, that only this layer knows of

    def lend(self, cache: Any) -> None:
        """Has a KV cache lie here from now on, where it can and no other one's is in use."""
        if self._known is not None and self._known[0]() is cache:
            return
        layers = getattr(cache, "layers", ())
        kinds = [PLACES.get(type(layer)) for layer in layers]
        if None in kinds:
            return
        if not self._places:
            self._places = [kind(self._most) for kind in kinds if kind is not None]
        if [type(place) for place in self._places] != kinds:
            return
        if all(place.is_free_for(layer) for place, layer in zip(self._places, layers, strict=True)):
            for place, layer in zip(self._places, layers, strict=True):
                place.lend(layer)

    def _lent(self, cache: Any) -> list[tuple[Place, Any]]:
        """The places and layers of a cache that lies here; none of any other."""
        layers = getattr(cache, "layers", ())
        if len(layers) != len(self._places):
            return []
        both = list(zip(self._places, layers, strict=True))
        return both if all(place.is_lent_to(layer) for place, layer in both) else []

    def take(self, cache: Any) -> int | None:
        """Brings the state of a cache that this is lent to here; tokens that are in it. None where that cannot be, or
        there is no room for the next one.
        """
        if self._known is None or self._known[0]() is not cache or self._counted(cache) != self._tokens:
            self.give_back(cache)
            found = [place.take(layer) for place, layer in self._lent(cache)]
            counted = {each for each in found if each not in (None, ANY)}
            if None in found or len(counted) != 1:
                return None
            self._known = weakref.ref(cache), next(at for at, each in enumerate(found) if each != ANY)
            self._tokens = self._counted(cache)
        return self._tokens if self._tokens < self._most else None

    def _counted(self, cache: Any) -> int:
        """Tokens in a cache that is known, as one of its layers says."""
        assert self._known is not None
        tokens: int = cache.layers[self._known[1]].get_seq_length()
        return tokens

    def took_one(self, cache: Any) -> None:
        """A token has been computed here. All layers but one learn of it later: there are many of them."""
        assert self._known is not None
        at = self._known[1]
        self._places[at].took(cache.layers[at], 1)
        self._tokens += 1
        self._behind += 1

    def settle(self) -> None:
        """Tells all layers of the tokens that were computed here."""
        if self._behind and self._known is not None:
            tokens, self._behind = self._behind, 0
            for at, place in enumerate(self._places):
                if at != self._known[1] and (layer := place.tenant) is not None:
                    place.took(layer, tokens)

    def give_back(self, cache: Any) -> None:
        """Has a cache go on by itself."""
        self.settle()
        self._known = None
        for place, layer in self._lent(cache):
            place.give_back(layer)

    def snapshot(self, cache: Any) -> list[Any]:
        """The state of a cache that is here: what the next token will change of it."""
        self.settle()
        return [place.snapshot(layer) for place, layer in self._lent(cache)]

    def restore(self, cache: Any, snapshot: list[Any]) -> None:
        """The state is again as it was, unless more than one token has come since."""
        for (place, layer), each in zip(self._lent(cache), snapshot, strict=True):
            place.restore(layer, each)
        self._tokens, self._behind = self._counted(cache), 0

    def close(self) -> None:
        """Has whoever lies here go on by itself."""
        self.settle()
        for place in self._places:
            if (layer := place.tenant) is not None:
                place.give_back(layer)

    def view(self, cache: Any, room: int, position: Tensor) -> Cache:
        """A cache over this memory, for the token at `position`, int64 [1], of no more than `room`."""
        return Cache(layers=[place.view(layer, room, position) for place, layer in self._lent(cache)])

    def is_followed(self, view: Cache) -> bool:
        """Whether what a view was given to keep has come here."""
        return all(place.is_followed(layer) for place, layer in zip(self._places, view.layers, strict=True))
