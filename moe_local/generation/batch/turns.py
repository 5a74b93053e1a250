"""Whose turn it is among requests that come one by one: bookkeeping without a tensor.

A sequence waits, first come first served, until its caches have room; its prompt is read in passes of at most `chunk`
tokens, those of several short ones together; then it runs, a token a pass, until it ends. Budgets are in columns of
the KV caches, padding included.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Generic, Protocol, TypeVar

from moe_local.generation.batch.scheduler import GROWTH
from moe_local.model.buffers import columns


class Turning(Protocol):
    """What has to be known of a sequence to say when it is its turn."""

    at: int  # tokens at its beginning that are computed

    @property
    def length(self) -> int:
        """Tokens that it has: the prompt's, and the answer's so far."""

    @property
    def left(self) -> int:
        """Tokens that may still follow."""


S = TypeVar("S", bound=Turning)


class Turns(Generic[S]):
    """At most `places` sequences at a time, whose rows together have at most `kv_tokens` columns.

    Prompts of different lengths are computed together only where they can be `padded`. `running` is in the order of
    the cache's rows, `reading` in that of arrival; `width` tells how many columns those rows have now.
    """

    def __init__(
        self, places: int, kv_tokens: int, chunk: int, *, padded: bool, width: Callable[[], int] = lambda: 0
    ) -> None:
        self.places = places
        self.waiting: deque[S] = deque()
        self.reading: list[S] = []
        self.running: list[S] = []
        self._kv_tokens = kv_tokens
        self._chunk = chunk
        self._padded = padded
        self._width = width
        self._oldest = False  # whether the last turn was the oldest prompt's

    @property
    def spare(self) -> int:
        """Columns that nobody who has a place needs."""
        return max(0, self._kv_tokens - self._columns([*self.running, *self.reading], 1))

    def admit(self) -> list[S]:
        """Who has a place from now on, in the order of arrival: their prompts are read."""
        admitted: list[S] = []
        while self.waiting and self._fits(self.waiting[0]):
            self.reading.append(self.waiting.popleft())
            admitted.append(self.reading[-1])
        return admitted

    def read(self, held: Callable[[S], bool] = lambda sequence: False, most: int | None = None) -> list[S]:
        """Whose prompts the next pass reads: several to their ends, `most` tokens in all, or a slice of one; nobody
        who is `held`.

        The oldest and the shortest prompt take turns, so that neither waits for all the others.
        """
        ready = [sequence for sequence in self.reading if not held(sequence)]
        if not ready:
            return []
        self._oldest = not self._oldest
        first = ready[0] if self._oldest else min(ready, key=_unread)
        group = [first]
        for sequence in sorted(ready, key=lambda other: abs(_unread(other) - _unread(first))):  # the least padding
            if sequence is not first and self._with(group, sequence, self._chunk if most is None else most):
                group.append(sequence)
        return group

    def start(self, group: Iterable[S]) -> None:
        """The group's prompts are computed, and its rows are the last ones."""
        for sequence in group:
            self.reading.remove(sequence)
            self.running.append(sequence)

    def put_back(self) -> S | None:
        """Has the last that came wait again, if the next column of all is more than fits."""
        taken = [*self.running, *self.reading]
        if len(taken) < 2 or self._columns(taken, 1) <= self._kv_tokens:
            return None
        last = self.reading[-1] if self.reading else self.running[-1]
        self.drop(last)
        self.waiting.appendleft(last)
        return last

    def drop(self, sequence: S) -> None:
        """It has no place any more, and does not wait."""
        for place in (self.waiting, self.reading, self.running):
            if sequence in place:
                place.remove(sequence)

    def _fits(self, sequence: S) -> bool:
        taken = [*self.running, *self.reading, sequence]
        if len(taken) == 1:
            return True  # one alone fits: no longer than the context
        growth = min(GROWTH, max(each.left for each in taken))
        return len(taken) <= self.places and self._columns(taken, growth) <= self._kv_tokens

    def _columns(self, sequences: list[S], growth: int = 0) -> int:
        longest = max([self._width(), *(sequence.length for sequence in sequences)]) if sequences else 0
        return len(sequences) * columns(longest + growth)

    def _with(self, group: list[S], sequence: S, most: int) -> bool:
        """Whether a sequence's prompt is read along with those of a group, in one pass of at most so many tokens."""
        first = group[0]
        longest = max(_unread(sequence), *map(_unread, group))
        alike = self._padded or _unread(sequence) == _unread(first)
        return alike and bool(sequence.at) == bool(first.at) and (len(group) + 1) * longest <= most


def _unread(sequence: Turning) -> int:
    """Tokens of its prompt that are not computed yet."""
    return sequence.length - sequence.at
