"""What of the last generation's KV cache the next one can go on from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_local.model.kv_cache import PLAIN_LAYERS

Tokens = NDArray[np.int64]


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
        common = min(common_beginning(kept, ids), len(ids) - 1)
        if cache is None or (common < len(kept) and not _cut(cache, len(kept), common)):
            return 0, None
        return common, cache

    def put(self, ids: list[int], cache: Any) -> None:
        """Keeps a cache, computed from `ids`; None, of a model that has none, keeps nothing."""
        self._kept = (ids, cache)

    def put_back(self, ids: list[int], cache: Any) -> None:
        """Keeps a cache that was taken out for `ids`, when a generation ended on the way through the layers."""
        if not ids or not _can_be_cut(cache):
            return
        for layer in cache.layers:
            if (over := layer.get_seq_length() - len(ids)) > 0:
                layer.crop(-over)
        self._kept = (ids, cache)

    def clear(self) -> None:
        """Forgets the cache: the next generation begins at the prompt's first token."""
        self._kept = ([], None)


def common_beginning(one: Sequence[int] | Tokens, other: Sequence[int] | Tokens) -> int:
    """How many tokens two texts begin with alike."""
    least = min(len(one), len(other))
    differ = np.asarray(one[:least], dtype=np.int64) != np.asarray(other[:least], dtype=np.int64)
    return int(differ.argmax()) if differ.any() else least


def _cut(cache: Any, length: int, wanted: int) -> bool:
    """Cuts a cache of `length` tokens down to the first `wanted`; False where its layers cannot be cut."""
    if wanted == 0 or not _can_be_cut(cache):
        return False
    cache.crop(wanted - length)  # a negative number: tokens to take off the end
    return True


def _can_be_cut(cache: Any) -> bool:
    layers: Any = getattr(cache, "layers", None)
    return bool(layers) and all(type(layer) in PLAIN_LAYERS for layer in layers)
