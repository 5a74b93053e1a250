"""KV caches of texts that were computed before, for prompts that begin as they do: conversations, system prompts.

Found by their tokens, the longest common beginning first; the least recently used go where others need the room. As
the prompt caches of llama.cpp's server (https://github.com/ggml-org/llama.cpp) and the radix tree of SGLang (Zheng et
al. 2024, https://arxiv.org/abs/2312.07104), without sharing memory: a cache is copied by whoever goes on from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, Self, TypeVar

import numpy as np

from moe_local.generation.kv_reuse import Tokens, common_beginning
from moe_local.model.buffers import columns

LEAST = 16  # tokens that are worth copying a cache for


class Row(Protocol):
    """The KV cache of one sequence."""

    def beginning(self, number: int, tokens: int) -> Self:
        """A copy of its first `tokens`; `number` is 0."""

    def crop(self, tokens: int) -> None:
        """Lets go of all but the first `tokens`."""


R = TypeVar("R", bound=Row)


@dataclass(eq=False)
class _Kept(Generic[R]):
    ids: Tokens
    row: R

    @property
    def columns(self) -> int:
        return columns(len(self.ids))


class KeptBeginnings(Generic[R]):
    """Caches that nobody computes with. Those that can be `cut` serve whoever begins as they do, others only as a
    whole.
    """

    def __init__(self, *, cut: bool) -> None:
        self._cut = cut
        self._kept: list[_Kept[R]] = []  # the least recently used first

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def columns(self) -> int:
        """Of all that are kept."""
        return sum(each.columns for each in self._kept)

    def common(self, ids: Sequence[int]) -> int:
        """How many tokens of a prompt `take` would give."""
        return self._best(ids)[1]

    def take(self, ids: Sequence[int], spare: int) -> tuple[int, R | None]:
        """The longest beginning of a prompt that is kept, and its tokens' number: a row of the caller's own.

        At least one token of the prompt is left to compute. It is a copy where `spare` columns hold what is kept,
        else what was kept itself: for this prompt and no other from now on. (0, None) where there is none.
        """
        found, tokens = self._best(ids)
        if found is None:
            return 0, None
        self._kept.remove(found)
        whole, stays = tokens == len(found.ids), self.columns + found.columns <= spare
        if stays and not (whole and self._cut):  # all of it is a part of what the caller gives back
            self._kept.append(found)
            return tokens, found.row.beginning(0, tokens)
        if not whole:
            found.row.crop(tokens)
        return tokens, found.row

    def add(self, ids: Sequence[int], row: R) -> None:
        """Keeps the cache of a sequence of these tokens, for which there is room; what it says as well goes."""
        made = _Kept(np.asarray(ids, dtype=np.int64), row)
        self._kept = [each for each in self._kept if not self._says(made, each)]
        self._kept.append(made)

    def shrink(self, spare: int) -> None:
        """Lets go of the least recently used, until `spare` columns hold the rest."""
        while self._kept and self.columns > spare:
            del self._kept[0]

    def clear(self) -> None:
        """Lets go of all."""
        self._kept.clear()

    def _says(self, one: _Kept[R], other: _Kept[R]) -> bool:
        """Whether whoever could go on from `other` could as well go on from `one`."""
        same = common_beginning(one.ids, other.ids) == len(other.ids)
        return same and (self._cut or len(one.ids) == len(other.ids))

    def _best(self, ids: Sequence[int]) -> tuple[_Kept[R] | None, int]:
        wanted = np.asarray(ids[:-1], dtype=np.int64)
        best: tuple[_Kept[R] | None, int] = (None, LEAST - 1)
        for each in self._kept:
            tokens = common_beginning(wanted, each.ids)
            if tokens > best[1] and (self._cut or tokens == len(each.ids)):
                best = (each, tokens)
        return best if best[0] is not None else (None, 0)
