"""Continuous batching of requests that come one by one: a token for every answer in each pass, prompts in between.

Each expert that is brought in serves all, those whose prompts are read as well. A long prompt is read in slices, and
while others wait for their next token reading takes no more than its share of the time (see `sharing`). What was
computed before is not computed again: a prompt goes on from the longest beginning that a running or a kept sequence
has in common with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from time import perf_counter

import torch
from torch import Tensor

from moe_local.errors import CheckpointError, MoeLocalError
from moe_local.experts.in_step import InStep, attempted
from moe_local.generation.batch.caches import cache_of, can_branch, can_join, can_pad
from moe_local.generation.batch.followed import FollowedSequence, Served
from moe_local.generation.batch.kept import LEAST, KeptBeginnings
from moe_local.generation.batch.kv_rows import Hide, KVRows, Passed
from moe_local.generation.batch.sharing import TimeShares
from moe_local.generation.batch.turns import Turns
from moe_local.generation.damage import DAMAGED, DAMAGED_REMEDY, damaged
from moe_local.generation.encoder_decoder import assert_goes_on
from moe_local.generation.generate import TextGenerator
from moe_local.generation.kv_reuse import common_beginning
from moe_local.model.buffers import columns
from moe_local.planning.formulas import PREFILL_CHUNK

GONE = "nobody waits for the answer any more"
INTERNAL = "an internal error; the server's log has it"
_WORTH = 64  # tokens that another prompt has to have in common to be waited for


class LiveBatch:
    """A loaded model that answers whoever asks, `step` by step, in one thread.

    At most `sequences` at a time, whose caches, with those that are kept, have at most `kv_tokens` columns. `hide` is
    told which tokens of each forward pass are padding.
    """

    def __init__(
        self, generator: TextGenerator, *, sequences: int, kv_tokens: int, hide: Hide, in_step: InStep
    ) -> None:
        assert_goes_on(generator.model, "serving")
        self.totals = Served()
        self.on_error: Callable[[Exception], None] = lambda error: None  # told of those that are not our own
        self._model = generator.model
        self._hide = hide
        self._in_step = in_step
        self._chunk = min(generator.prefill_chunk, PREFILL_CHUNK)  # no longer: others wait for a pass
        cache = cache_of(self._model)
        self._rows = self._no_rows(0)  # one of each running sequence
        self._joins, self._branches = can_join(cache), can_branch(cache)
        self.turns = Turns[FollowedSequence](
            sequences if self._joins else 1,
            kv_tokens,
            self._chunk,
            padded=can_pad(cache),
            width=lambda: self._rows.length if len(self._rows) else 0,
        )
        self.kept = KeptBeginnings[KVRows](cut=self._branches)
        self._shares = TimeShares()

    @property
    def active(self) -> int:
        """Sequences that have a place."""
        return len(self.turns.running) + len(self.turns.reading)

    def add(self, sequence: FollowedSequence) -> None:
        """Has it wait for a place."""
        self.turns.waiting.append(sequence)

    def step(self) -> bool:
        """A token for every running sequence, and a pass over prompts if it is their turn; False: nobody is left."""
        self._drop_gone()
        self._make_room()
        self._admit()
        running = list(self.turns.running)
        logits = self._passes(running, self._group(len(running)))
        if logits:
            self._choose(torch.cat(logits))
        return bool(self.turns.waiting or self.active)

    def close(self, why: str) -> None:
        """Ends all answers with an error, and lets go of all caches; others may come after that."""
        for sequence in [*self.turns.running, *self.turns.reading, *self.turns.waiting]:
            self._fail(sequence, why)
        self.kept.clear()
        self._rows = self._no_rows(0)
        self._hide(None)

    def _drop_gone(self) -> None:
        """Lets go of those whose answers nobody waits for any more."""
        for sequence in [*self.turns.waiting, *self.turns.reading]:
            if sequence.follower.gone:
                self._fail(sequence, GONE)
        if over := [sequence for sequence in self.turns.running if sequence.follower.gone]:
            for sequence in over:
                sequence.failed(GONE)
            self._leave(over)

    def _make_room(self) -> None:
        """Has the last that came wait again where the next column is more than fits."""
        running = list(self.turns.running)
        while (last := self.turns.put_back()) is not None:
            last.at, last.row, last.after = 0, None, None
            self.totals.put_back += 1
        if len(self.turns.running) < len(running):
            self._rows.keep([n for n, sequence in enumerate(running) if sequence in self.turns.running])
            self._rows = self._rows.joined([])

    def _admit(self) -> None:
        """Gives those who wait a place, where there is one; what is kept makes room for them."""
        for sequence in self.turns.admit():
            self._go_on(sequence, LEAST)
            sequence.after = self._sharing(sequence)
        self.kept.shrink(self.turns.spare)

    def _go_on(self, sequence: FollowedSequence, least: int) -> None:
        """Has a sequence go on from what it has in common with another, if that is `least` more than it has."""
        bare = sequence.ids[:-1]  # what follows a prompt is known from its last token's pass
        tokens, number = 0, 0
        if self._branches:
            shared = [common_beginning(other.computed, bare) for other in self.turns.running]
            tokens, number = max(((each, n) for n, each in enumerate(shared)), default=(0, 0))
        kept = self.kept.common(sequence.ids)
        if max(tokens, kept) < sequence.at + least:
            sequence.go_on_from(sequence.at, sequence.row)
        elif kept >= tokens:
            sequence.go_on_from(*self.kept.take(sequence.ids, self.turns.spare))
        else:
            sequence.go_on_from(tokens, self._rows.beginning(number, tokens))

    def _sharing(self, sequence: FollowedSequence) -> FollowedSequence | None:
        """One whose prompt is being read, and that will have computed much of this one's as well."""
        if not self._branches:
            return None
        for other in self.turns.reading:
            if other is sequence:
                return None
            if common_beginning(other.ids[:-1], sequence.ids[:-1]) >= sequence.at + _WORTH:
                return other
        return None

    def _passes(self, running: Sequence[FollowedSequence], group: Sequence[FollowedSequence]) -> list[Tensor]:
        """A token more of those that run and a slice of the group's prompts -> logits of what comes next, [B, V]."""
        began = perf_counter()
        decode, read = partial(self._decode, running), partial(self._read, group, len(running))
        wanted = [work for work, those in ((decode, running), (read, group)) if those]
        found = self._in_step.run(wanted) if len(running) > 1 and group else [attempted(work) for work in wanted]
        self._shares.passed(perf_counter() - began, len(running), len(self.turns.reading), read=bool(group))
        logits = []
        if running:
            logits.append(self._decoded(running, found.pop(0)))
        if group:
            logits.append(self._was_read(group, found.pop(0)))
        return [made for made in logits if made is not None]

    def _decode(self, running: Sequence[FollowedSequence]) -> Passed:
        """A forward pass over the last token of each."""
        return self._rows, self._rows.step(torch.tensor([sequence.ids[-1] for sequence in running]))

    def _decoded(self, running: Sequence[FollowedSequence], found: Passed | Exception) -> Tensor | None:
        if not isinstance(found, Exception):
            return found[1]
        self._rows = self._no_rows(0)  # of the disk, of memory: it has ended their caches, and nothing else
        self._fail_all(running, found)
        return None

    def _group(self, running: int) -> list[FollowedSequence]:
        """Whose prompts are read now, if it is their turn, each from where another that is further has come to."""
        if not self._shares.may_read(running):
            return []
        reading = set(self.turns.reading)
        for sequence in self.turns.reading:
            if sequence.after is not None and sequence.after not in reading:
                sequence.after = None
                self._go_on(sequence, _WORTH)
                sequence.after = self._sharing(sequence)
        return self.turns.read(lambda sequence: sequence.after is not None, self._slice(running))

    def _slice(self, running: int) -> int:
        """Tokens of prompts that go through the model at once, at most, beside those of so many that run."""
        return max(1, self._chunk - running)

    def _read(self, group: Sequence[FollowedSequence], running: int) -> Passed:
        """A forward pass over prompts, or a slice of one, of whom so many others run beside."""
        rows, most = self._rows_of(group), self._slice(running)
        return rows, rows.read([sequence.ids[sequence.at : sequence.at + most] for sequence in group])

    def _was_read(self, group: Sequence[FollowedSequence], found: Passed | Exception) -> Tensor | None:
        if isinstance(found, Exception):
            self._fail_all(group, found)
            return None
        (rows, logits), first = found, group[0]
        if rows.length < first.length:
            first.at, first.row = rows.length, rows
            return None
        if self._joins and not self._branches:
            self._keep_prompts(group, rows)
        self._rows = self._rows.joined([rows])
        self.turns.start(group)
        for sequence in group:
            sequence.at, sequence.row = sequence.length, None
            self.totals.prompt_tokens += sequence.prompt_tokens
            self.totals.cached_tokens += sequence.cached
        return logits

    def _rows_of(self, group: Sequence[FollowedSequence]) -> KVRows:
        """What is computed of their prompts, in one."""
        rows = [sequence.row for sequence in group if sequence.row is not None]
        for sequence in group:
            sequence.row = None
        return rows[0].joined(rows[1:]) if rows else self._no_rows(len(group))

    def _choose(self, logits: Tensor) -> None:
        """Chooses a token for each running sequence, by logits [B, V]; those that it ends leave."""
        running = list(self.turns.running)
        broken, likeliest = damaged(logits).tolist(), logits.argmax(dim=-1).tolist()
        over = [
            sequence
            for sequence, scores, token, bad in zip(running, logits, likeliest, broken, strict=True)
            if self._ended(sequence, scores, token, bad)
        ]
        self.totals.new_tokens += len(running)
        self.totals.passes += 1
        if over:
            self._leave(over)

    def _ended(self, sequence: FollowedSequence, scores: Tensor, likeliest: int, broken: bool) -> bool:
        """Chooses a sequence's next token by logits [V]; whether its answer is over, and told of."""
        try:
            if broken:
                raise CheckpointError(DAMAGED, remedy=DAMAGED_REMEDY)
            reason = sequence.take(scores, likeliest)
            if reason is not None:
                sequence.ended(reason)
            return reason is not None
        except Exception as error:  # of its grammar, say: the others go on
            self._tell(error)
            sequence.failed(_said(error))
            return True

    def _leave(self, over: Sequence[FollowedSequence]) -> None:
        """Those that are over give back their places; their caches are kept, where there is room."""
        running = list(self.turns.running)
        for sequence in over:
            self.turns.drop(sequence)
        rest = [n for n, sequence in enumerate(running) if sequence not in over]
        kept = self._worth_keeping(over) if self._joins else []
        rows = self._rows.take_out([(running.index(each), len(each.computed)) for each in kept], rest)
        for sequence, row in zip(kept, rows, strict=True):
            self.kept.add(sequence.computed, row)
        self._rows = self._rows.joined([])

    def _keep_prompts(self, group: Sequence[FollowedSequence], rows: KVRows) -> None:
        """Keeps what the prompts' caches are now: those that cannot be cut serve only whoever has all of it."""
        kept = self._worth_keeping(group)
        for sequence in kept:
            row = rows.beginning(group.index(sequence), sequence.length)
            self.kept.add(sequence.ids, row)

    def _worth_keeping(self, sequences: Sequence[FollowedSequence]) -> list[FollowedSequence]:
        """Those for whose caches there is room, which what was kept before makes."""
        spare, kept, needed = self.turns.spare, [], 0
        for sequence in sequences:
            more = columns(sequence.length)
            if sequence.length > LEAST and needed + more <= spare:
                kept.append(sequence)
                needed += more
        self.kept.shrink(spare - needed)
        return kept

    def _fail_all(self, sequences: Sequence[FollowedSequence], error: Exception) -> None:
        self._tell(error)
        for sequence in sequences:
            self._fail(sequence, _said(error))

    def _fail(self, sequence: FollowedSequence, why: str) -> None:
        """Tells one that has no row among those that run that there is no answer."""
        self.turns.drop(sequence)
        sequence.row = None
        sequence.failed(why)

    def _tell(self, error: Exception) -> None:
        if not isinstance(error, MoeLocalError):
            self.on_error(error)

    def _no_rows(self, count: int) -> KVRows:
        """As many sequences, that have no tokens yet."""
        return KVRows.empty(self._model, count, self._hide, self._chunk)


def _said(error: Exception) -> str:
    """What whoever asked is told of an error: of those that are not ours nothing that is about this machine."""
    return str(error) if isinstance(error, MoeLocalError) else INTERNAL
