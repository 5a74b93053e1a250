"""Continuous batching: a token for every sequence in each forward pass, and each expert is brought in once for all.

Prompts of like length are computed together, up to 512 tokens at a time: by then nearly every expert of a layer is
needed anyway, and each is read once. Sequences join as others end. What one of them says depends on its neighbours by
the kernels' rounding only: padding is masked exactly, and its experts are neither read nor computed.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch

from moe_local.errors import MoeLocalError
from moe_local.generation.batch.caches import cache_of, can_branch, can_join, can_pad
from moe_local.generation.batch.choice import Choice
from moe_local.generation.batch.request import Answer, Request
from moe_local.generation.batch.rows import Hide, Rows
from moe_local.generation.generate import TextGenerator
from moe_local.generation.prompt import is_chat, prompt_ids
from moe_local.generation.stream import DAMAGED, DAMAGED_REMEDY, damaged
from moe_local.model.kv_cache import columns

_WINDOW = 1024  # requests that are looked at together, to put like lengths side by side
_ROOM = 64  # tokens that a sequence must be able to grow by before it is taken on
_JOIN = 8  # sequences join when a share of 1 / _JOIN of the places is free


@dataclass
class Progress:
    """How far a batch has come."""

    active: int = 0  # sequences that are being generated
    prompt_tokens: int = 0
    shared_tokens: int = 0  # of the prompts', computed once for several
    new_tokens: int = 0
    passes: int = 0  # forward passes that chose tokens
    put_back: int = 0  # sequences that had to make room, and began again later


class _Sequence:
    """A request under way. `ids` are the prompt's and the answer's tokens so far."""

    def __init__(self, request: Request, ids: list[int], generator: TextGenerator) -> None:
        sampling, model = request.sampling, generator.model
        self.request = request
        self.ids = ids
        self.prompt_tokens = len(ids)
        self.limit = generator.limit(ids, sampling)
        self.choice = Choice(model, sampling, len(ids))
        chat = is_chat(generator, request.prompt, raw=request.raw)
        self._stream = generator.answer_stream(ids, sampling, chat)
        self._ends = generator.end_tokens
        self.shared = 0  # tokens that the others begin with as well, computed already

    @property
    def new(self) -> list[int]:
        return self.ids[self.prompt_tokens :]

    @property
    def left(self) -> int:
        return self.prompt_tokens + self.limit - len(self.ids)

    def add(self, token: int) -> str | None:
        """The finish reason, if this token ends it."""
        self.ids.append(token)
        self._stream.add(token)
        if token in self._ends or self._stream.pending_stop():
            return "stop"
        return None if self.left else "length"

    def answer(self, reason: str) -> Answer:
        self._stream.end()
        return Answer(
            self.request,
            self._stream.text,
            self.new,
            self.prompt_tokens,
            reason,
            reasoning=self._stream.reasoning,
        )


class BatchGenerator:
    """A loaded model that answers many requests at once.

    At most `sequences` at a time, whose caches together have at most `kv_tokens` columns, padding included. `hide` is
    told which tokens of each forward pass are padding.
    """

    def __init__(self, generator: TextGenerator, *, sequences: int, kv_tokens: int, hide: Hide) -> None:
        self.progress = Progress()
        self.on_pass: Callable[[Progress], None] = lambda progress: None  # called after every forward pass
        self._generator = generator
        self._model = generator.model
        self._hide = hide
        cache = cache_of(self._model)
        self._sequences = sequences if can_join(cache) else 1
        self._pads = can_pad(cache)
        self._branches = can_branch(cache)
        self._kv_tokens = kv_tokens
        self._chunk = generator.prefill_chunk
        self._live: list[_Sequence] = []
        self._rows = self._no_rows()
        self._logits = torch.empty(0)  # [live, V]
        self._prefix: Rows | None = None  # what the waiting prompts begin with

    @property
    def together(self) -> int:
        """How many sequences can be generated at once; 1 for caches that cannot be shared."""
        return self._sequences

    def run(self, requests: Iterable[Request], interrupt: threading.Event | None = None) -> Iterator[Answer]:
        """Answers as they are finished. Setting `interrupt` ends it after the token under way."""
        interrupt = interrupt or threading.Event()
        source = iter(requests)
        waiting: deque[_Sequence] = deque()
        try:
            while not interrupt.is_set():
                yield from self._take(source, waiting)
                self._admit(waiting, interrupt)
                if not self._live:
                    return
                yield from self._next_tokens()
                self._make_room(waiting)
                self._logits = torch.empty(0)  # they are large: not both at once
                if self._live:
                    self._logits = self._rows.step(torch.tensor([s.ids[-1] for s in self._live]))
        finally:
            self._live, self._rows = [], self._no_rows()
            self._prefix = None
            self._hide(None)

    def _take(self, source: Iterator[Request], waiting: deque[_Sequence]) -> Iterator[Answer]:
        """Fills `waiting` with requests, the shortest first; yields those that cannot be answered."""
        while not waiting and (some := list(islice(source, _WINDOW))):
            taken = []
            for request in some:
                try:
                    ids = prompt_ids(
                        self._generator,
                        request.prompt,
                        raw=request.raw,
                        system=request.system,
                        variables=request.template_variables,
                    )
                    taken.append(_Sequence(request, ids, self._generator))
                except (MoeLocalError, ValueError) as error:  # ValueError: transformers, of sampling options
                    yield Answer(request, error=str(error))
            self._prefix = self._shared(taken)
            waiting.extend(sorted(taken, key=lambda sequence: len(sequence.ids)))

    def _shared(self, sequences: Sequence[_Sequence]) -> Rows | None:
        """What all of them begin with, computed once; None if that saves less than the pass that it takes."""
        common = _beginning([sequence.ids[:-1] for sequence in sequences]) if sequences and self._branches else []
        if (len(sequences) - 1) * len(common) < self._chunk:
            return None
        rows = self._no_rows(1)
        rows.read([common])
        for sequence in sequences:
            sequence.shared = len(common)
        return rows

    def _no_rows(self, count: int = 0) -> Rows:
        """As many sequences, that have no tokens yet."""
        return Rows.empty(self._model, count, self._hide, self._chunk)

    def _admit(self, waiting: deque[_Sequence], interrupt: threading.Event) -> None:
        """Takes on as many as there is room for, when that is worth reading most experts for."""
        found: list[_Sequence] = []
        while waiting and self._fits([*self._live, *found, waiting[0]]):
            found.append(waiting.popleft())
        if waiting and self._live and len(found) * _JOIN < self._sequences:
            waiting.extendleft(reversed(found))
            return
        while found and not interrupt.is_set():
            group = self._group(found)
            self._begin(group)
            del found[: len(group)]

    def _fits(self, sequences: Sequence[_Sequence]) -> bool:
        if len(sequences) == 1:
            return True  # one alone fits: no longer than the context
        longest = max(len(s.ids) + min(s.left, _ROOM) for s in sequences)
        return len(sequences) <= self._sequences and len(sequences) * columns(longest) <= self._kv_tokens

    def _group(self, found: Sequence[_Sequence]) -> list[_Sequence]:
        """The first few, that are computed in one pass: of one length, where they cannot be padded."""
        first, *others = found
        group = [first]
        for sequence in others:
            longest = max(len(sequence.ids), len(first.ids)) - first.shared
            alike = self._pads or len(sequence.ids) == len(first.ids)
            if not alike or sequence.shared != first.shared or (len(group) + 1) * longest > self._chunk:
                break
            group.append(sequence)
        return group

    def _begin(self, group: Sequence[_Sequence]) -> None:
        shared = group[0].shared
        rows = self._prefix.branch(len(group)) if self._prefix and shared else None
        rows = rows or self._no_rows(len(group))
        logits = rows.read([sequence.ids[rows.length :] for sequence in group])
        self._rows = self._rows.joined([rows])
        self._logits = torch.cat([self._logits, logits]) if self._live else logits
        self._live.extend(group)
        self.progress.active = len(self._live)
        self.progress.prompt_tokens += sum(len(sequence.ids) for sequence in group)
        self.progress.shared_tokens += len(group) * shared
        self.on_pass(self.progress)

    def _next_tokens(self) -> Iterator[Answer]:
        """Chooses a token for each sequence, and lets go of those that it ends."""
        yield from self._let_go_of_damaged()
        ended: dict[int, str] = {}
        for number, (sequence, token) in enumerate(zip(self._live, self._chosen(), strict=True)):
            reason = sequence.add(token)
            if reason is not None:
                ended[number] = reason
        self.progress.new_tokens += len(self._live)
        self.progress.passes += 1
        self.on_pass(self.progress)
        answers = [self._live[number].answer(reason) for number, reason in ended.items()]
        self._keep([number for number in range(len(self._live)) if number not in ended])
        yield from answers

    def _let_go_of_damaged(self) -> Iterator[Answer]:
        """Answers with an error those sequences for which the model gives what cannot be chosen from."""
        bad = damaged(self._logits).tolist() if self._live else []
        if any(bad):
            yield from (
                Answer(sequence.request, error=f"{DAMAGED}; {DAMAGED_REMEDY}")
                for sequence, broken in zip(self._live, bad, strict=True)
                if broken
            )
            kept = [number for number, broken in enumerate(bad) if not broken]
            self._logits = self._logits[kept]
            self._keep(kept)

    def _chosen(self) -> list[int]:
        likeliest: list[int] = self._logits.argmax(dim=-1).tolist()
        return [
            token if sequence.choice.plain else sequence.choice(sequence.ids, scores)
            for sequence, token, scores in zip(self._live, likeliest, self._logits, strict=True)
        ]

    def _keep(self, numbers: Sequence[int]) -> None:
        if len(numbers) < len(self._live):
            self._live = [self._live[number] for number in numbers]
            self._rows.keep(numbers)
            self._rows = self._rows.joined([])
            self.progress.active = len(self._live)

    def _make_room(self, waiting: deque[_Sequence]) -> None:
        """Puts the last sequences back where the next column would be more than fits: they begin again later."""
        while len(self._live) > 1 and len(self._live) * columns(self._rows.length + 1) > self._kv_tokens:
            self._live[-1].shared = 0  # the beginning may be another window's by then
            waiting.appendleft(self._live[-1])
            self.progress.put_back += 1
            self._keep(range(len(self._live) - 1))


def _beginning(sequences: Sequence[list[int]]) -> list[int]:
    """What all of them begin with."""
    first, last = min(sequences), max(sequences)
    return first[: next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))]
