"""Which sequences of a batch are computed together, and when: bookkeeping without a tensor.

A sequence waits, is admitted when there is room for it to grow, runs until it ends, and is put back to wait again
where all that run have grown into each other's room. Budgets are in columns of the KV cache, padding included.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Generic, Protocol, TypeVar

from moe_local.generation.kv_reuse import common_beginning
from moe_local.model.buffers import columns

GROWTH = 64  # tokens that a sequence must be able to grow by before it is taken on
_JOIN = 8  # sequences join when a share of 1 / _JOIN of the places is free


class Scheduled(Protocol):
    """What the scheduler has to know of a sequence."""

    shared: int  # tokens at its beginning that are computed already, for several

    @property
    def length(self) -> int:
        """Tokens that it has: the prompt's, and the answer's so far."""

    @property
    def left(self) -> int:
        """Tokens that may still follow."""


S = TypeVar("S", bound=Scheduled)


class Scheduler(Generic[S]):
    """At most `places` sequences at a time, whose rows together have at most `kv_tokens` columns.

    Prompts are computed in groups of at most `chunk` tokens, less one for each that runs; of one length only, unless
    they can be `padded`.
    `running` is in the order of the cache's rows.
    """

    def __init__(self, places: int, kv_tokens: int, chunk: int, *, padded: bool) -> None:
        self.places = places
        self.waiting: deque[S] = deque()
        self.running: list[S] = []
        self._kv_tokens = kv_tokens
        self._chunk = chunk
        self._padded = padded

    def add(self, sequences: Iterable[S]) -> None:
        """Has sequences wait, the shortest first."""
        self.waiting.extend(sorted(sequences, key=lambda sequence: sequence.length))

    def admit(self) -> list[list[S]]:
        """Who joins now, in groups that are computed at once; `start` each.

        Nobody while others run, before so many can join that it is worth reading most experts for their prompts.
        """
        joining: list[S] = []
        while self.waiting and self._fits([*self.running, *joining, self.waiting[0]]):
            joining.append(self.waiting.popleft())
        if self.waiting and self.running and len(joining) * _JOIN < self.places:
            self.waiting.extendleft(reversed(joining))
            return []
        return self._groups(joining)

    def start(self, group: Sequence[S]) -> None:
        """The group's prompts are computed, and its rows are the last ones."""
        self.running.extend(group)

    def put_back(self, length: int) -> S | None:
        """Has the last sequence wait again, if the next column is more than fits; rows have `length` of them now."""
        if len(self.running) < 2 or len(self.running) * columns(length + 1) <= self._kv_tokens:
            return None
        last = self.running.pop()
        last.shared = 0  # what others begin with may be something else by then
        self.waiting.appendleft(last)
        return last

    def keep(self, numbers: Sequence[int]) -> None:
        """Only these of the running sequences go on."""
        self.running = [self.running[number] for number in numbers]

    def clear(self) -> None:
        """Nobody waits, and nobody runs."""
        self.waiting.clear()
        self.running = []

    def _fits(self, sequences: Sequence[S]) -> bool:
        if len(sequences) == 1:
            return True  # one alone fits: no longer than the context
        longest = max(sequence.length + min(sequence.left, GROWTH) for sequence in sequences)
        return len(sequences) <= self.places and len(sequences) * columns(longest) <= self._kv_tokens

    def _groups(self, joining: Sequence[S]) -> list[list[S]]:
        groups: list[list[S]] = []
        for sequence in joining:
            if groups and self._computed_with(groups[-1], sequence):
                groups[-1].append(sequence)
            else:
                groups.append([sequence])
        return groups

    def _computed_with(self, group: Sequence[S], sequence: S) -> bool:
        first = group[0]
        longest = max(sequence.length, first.length) - first.shared
        alike = self._padded or sequence.length == first.length
        room = self._chunk - len(self.running)  # those that run take a step in the same pass
        return alike and sequence.shared == first.shared and (len(group) + 1) * longest <= room


def shared_beginning(prompts: Sequence[Sequence[int]], chunk: int) -> list[int]:
    """What all prompts begin with, if computing it once saves more than the pass of `chunk` tokens that it takes.

    No prompt's last token is in it: what follows a prompt is known from that one's pass.
    """
    if not prompts:
        return []
    bare = [list(prompt[:-1]) for prompt in prompts]
    first, last = min(bare), max(bare)  # what these two begin with, all do
    common = common_beginning(first, last)
    return first[:common] if (len(prompts) - 1) * common >= chunk else []
