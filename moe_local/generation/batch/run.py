"""Continuous batching: a token for every sequence in each forward pass, and each expert is brought in once for all.

Prompts of like length are computed together, up to 512 tokens at a time: by then nearly every expert of a layer is
needed anyway, and each is read once, for those that decode as well. Sequences join as others end. What one of them
says depends on its neighbours by the kernels' rounding only: padding is masked exactly, and its experts are neither
read nor computed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

import torch
from torch import Tensor

from moe_local.errors import MoeLocalError
from moe_local.experts.in_step import InStep, done
from moe_local.generation.batch.caches import cache_of, can_branch, can_join, can_pad
from moe_local.generation.batch.kv_rows import Hide, KVRows, Passed
from moe_local.generation.batch.request import Answer, Request
from moe_local.generation.batch.scheduler import Scheduler, shared_beginning
from moe_local.generation.batch.sequence import BatchSequence
from moe_local.generation.damage import DAMAGED, DAMAGED_REMEDY, damaged
from moe_local.generation.encoder_decoder import assert_goes_on
from moe_local.generation.generate import TextGenerator
from moe_local.generation.prompt import prompt_ids
from moe_local.planning.formulas import PREFILL_CHUNK

_WINDOW = 1024  # requests that are looked at together, to put like lengths side by side


@dataclass
class Progress:
    """How far a batch has come."""

    active: int = 0  # sequences that are being generated
    prompt_tokens: int = 0
    shared_tokens: int = 0  # of the prompts', computed once for several
    new_tokens: int = 0
    passes: int = 0  # forward passes that chose tokens
    put_back: int = 0  # sequences that had to make room, and began again later


class BatchGenerator:
    """A loaded model that answers many requests at once.

    At most `sequences` at a time, whose caches together have at most `kv_tokens` columns, padding included. `hide` is
    told which tokens of each forward pass are padding.
    """

    def __init__(
        self, generator: TextGenerator, *, sequences: int, kv_tokens: int, hide: Hide, in_step: InStep
    ) -> None:
        self.progress = Progress()
        self.on_pass: Callable[[Progress], None] = lambda progress: None  # called after every forward pass
        assert_goes_on(generator.model, "a batch")
        self._generator = generator
        self._model = generator.model
        self._hide = hide
        self._in_step = in_step
        self._chunk = generator.prefill_chunk
        cache = cache_of(self._model)
        places = sequences if can_join(cache) else 1
        self._branches = can_branch(cache)
        self._scheduler = Scheduler[BatchSequence](places, kv_tokens, self._chunk, padded=can_pad(cache))
        self._rows = self._no_rows()  # one of each running sequence
        self._prefix: KVRows | None = None  # what the waiting prompts begin with

    @property
    def together(self) -> int:
        """How many sequences can be generated at once; 1 for caches that cannot be shared."""
        return self._scheduler.places

    def run(self, requests: Iterable[Request], interrupt: threading.Event | None = None) -> Iterator[Answer]:
        """Answers as they are finished. Setting `interrupt` ends it after the token under way."""
        interrupt = interrupt or threading.Event()
        source = iter(requests)
        try:
            while not interrupt.is_set():
                self._put_back()
                yield from self._read(source)
                logits = self._forward(self._scheduler.admit(), interrupt)
                if logits is None:
                    return
                yield from self._choose(logits)
                del logits  # they are large: not those of two passes at once
        finally:
            self._scheduler.clear()
            self._rows, self._prefix = self._no_rows(), None
            self._hide(None)

    def _put_back(self) -> None:
        """Has the last sequences wait again where the next column is more than fits."""
        while self._scheduler.put_back(self._rows.length) is not None:
            self.progress.put_back += 1
            self._keep_rows(range(len(self._scheduler.running)))

    def _read(self, source: Iterator[Request]) -> Iterator[Answer]:
        """Has the next requests wait, where nobody does; yields those that cannot be answered."""
        while not self._scheduler.waiting and (window := list(islice(source, _WINDOW))):
            read: list[BatchSequence] = []
            for request in window:
                try:
                    read.append(BatchSequence(request, self._ids(request), self._generator))
                except (MoeLocalError, ValueError) as error:  # ValueError: transformers, of sampling options
                    yield Answer(request, error=str(error))
            self._share(read)
            self._scheduler.add(read)

    def _ids(self, request: Request) -> list[int]:
        return prompt_ids(
            self._generator,
            request.prompt,
            raw=request.raw,
            system=request.system,
            variables=request.template_variables,
        )

    def _share(self, sequences: Sequence[BatchSequence]) -> None:
        """Computes what all of them begin with, once, if that is worth a pass."""
        common = shared_beginning([each.ids for each in sequences], PREFILL_CHUNK) if self._branches else []
        self._prefix = None
        if common:
            self._prefix = self._no_rows(1)
            self._prefix.read([common])
        for sequence in sequences:
            sequence.shared = len(common)

    def _no_rows(self, count: int = 0) -> KVRows:
        """As many sequences, that have no tokens yet."""
        return KVRows.empty(self._model, count, self._hide, self._chunk)

    def _forward(self, joining: Sequence[Sequence[BatchSequence]], interrupt: threading.Event) -> Tensor | None:
        """A token more of those that run, and the prompts of those that join -> logits of what comes next, [B, V].

        Of the sequences that run then, in their order; None where there are none.
        """
        running, logits = list(self._scheduler.running), []
        passes = [partial(self._decode, running)] if running else []
        passes += [partial(self._read_prompts, group, len(running)) for group in joining[:1]]
        in_step = len(running) > 1 and len(passes) > 1
        found = map(done, self._in_step.run(passes)) if in_step else (each() for each in passes)
        if running:
            logits.append(next(found)[1])
        for group in joining:
            if interrupt.is_set():
                break
            rows, scores = next(found, None) or self._read_prompts(group)
            self._join(group, rows)
            logits.append(scores)
        return torch.cat(logits) if len(logits) > 1 else next(iter(logits), None)

    def _decode(self, running: Sequence[BatchSequence]) -> Passed:
        """A forward pass over the last token of each."""
        return self._rows, self._rows.step(torch.tensor([sequence.ids[-1] for sequence in running]))

    def _read_prompts(self, group: Sequence[BatchSequence], beside: int = 0) -> Passed:
        """Computes the prompts of a group, while so many others take a step."""
        shared = group[0].shared
        rows = self._prefix.branch(len(group)) if self._prefix and shared else self._no_rows(len(group))
        return rows, rows.read([sequence.ids[rows.length :] for sequence in group], beside)

    def _join(self, group: Sequence[BatchSequence], rows: KVRows) -> None:
        """The group's rows are the last ones from now on."""
        self._rows = self._rows.joined([rows])
        self._scheduler.start(group)
        self.progress.active = len(self._scheduler.running)
        self.progress.prompt_tokens += sum(sequence.length for sequence in group)
        self.progress.shared_tokens += len(group) * group[0].shared
        self.on_pass(self.progress)

    def _choose(self, logits: Tensor) -> Iterator[Answer]:
        """Chooses a token for each sequence, by logits [B, V]; yields the answers of those that it ends."""
        broken = damaged(logits).tolist()
        if any(broken):
            yield from self._refused(broken)
            sound = [number for number, bad in enumerate(broken) if not bad]
            logits = logits[sound]
            self._keep(sound)
        running = self._scheduler.running
        reasons = [sequence.add(token) for sequence, token in zip(running, _chosen(running, logits), strict=True)]
        self.progress.new_tokens += len(running)
        self.progress.passes += 1
        self.on_pass(self.progress)
        answers = [each.answer(reason) for each, reason in zip(running, reasons, strict=True) if reason is not None]
        self._keep([number for number, reason in enumerate(reasons) if reason is None])
        yield from answers

    def _refused(self, broken: Sequence[bool]) -> Iterator[Answer]:
        """Errors of those sequences for which the model gives what cannot be chosen from."""
        for sequence, bad in zip(self._scheduler.running, broken, strict=True):
            if bad:
                yield Answer(sequence.request, error=f"{DAMAGED}; {DAMAGED_REMEDY}")

    def _keep(self, numbers: Sequence[int]) -> None:
        """Lets go of all but these of the running sequences."""
        if len(numbers) < len(self._scheduler.running):
            self._scheduler.keep(numbers)
            self._keep_rows(numbers)

    def _keep_rows(self, numbers: Sequence[int]) -> None:
        self._rows.keep(numbers)
        self._rows = self._rows.joined([])
        self.progress.active = len(numbers)


def _chosen(sequences: Sequence[BatchSequence], logits: Tensor) -> list[int]:
    """The next token of each sequence, by logits [B, V]."""
    likeliest: list[int] = logits.argmax(dim=-1).tolist() if sequences else []
    return [
        token if sequence.choice.plain else sequence.choice(sequence.ids, scores)
        for sequence, token, scores in zip(sequences, likeliest, logits, strict=True)
    ]
