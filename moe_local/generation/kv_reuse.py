"""What of the last generation's KV cache the next one can go on from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moe_local.model.kv_cache import PLAIN_LAYERS


class KVState:
    """A KV cache and the tokens it was made from, to go on from.

    A generation takes the cache out and puts it back at its end: one that an error ends leaves nothing behind.
    """

    def __init__(self) -> None:
        self._kept: tuple[list[int], Any] = ([], None)

    def take(self, ids: Sequence[int]) -> tuple[int, Any]:
        """The cache cut down to what `ids` begins with, and how many tokens that is; at least one is left to compute.

        A cache that cannot be cut (recurrent or sliding-window states) is dropped: (0, None).
        """
        (kept, cache), self._kept = self._kept, ([], None)
        differing = (i for i, (a, b) in enumerate(zip(kept, ids, strict=False)) if a != b)
        common = min(next(differing, len(kept)), len(ids) - 1)
        if cache is None or (common < len(kept) and not _cut(cache, len(kept), common)):
            return 0, None
        return common, cache

    def put(self, ids: list[int], cache: Any) -> None:
        """Keeps a cache, computed from `ids`; None, of a model that has none, keeps nothing."""
        self._kept = (ids, cache)

    def clear(self) -> None:
        """Forgets the cache: the next generation begins at the prompt's first token."""
        self._kept = ([], None)


def _cut(cache: Any, length: int, wanted: int) -> bool:
    """Cuts a cache of `length` tokens down to the first `wanted`; False where its layers cannot be cut."""
    layers = getattr(cache, "layers", None)
    if wanted == 0 or not layers or any(type(layer) not in PLAIN_LAYERS for layer in layers):
        return False
    cache.crop(wanted - length)  # a negative number: tokens to take off the end
    return True
