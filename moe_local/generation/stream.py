"""An answer as it comes: its text piece by piece, and what ends it.

`AnswerStream` makes text of tokens, reasoning apart from the answer and nothing of a stop string. What transformers'
`generate` is handed feeds it: `TokenStream` takes each token, `Halt` ends it at a stop string or an interrupt, and
`RefuseDamage` where the scores are no numbers.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedTokenizerBase, StoppingCriteria, TextStreamer
from transformers.generation.streamers import BaseStreamer

from moe_local.errors import CheckpointError
from moe_local.generation.channels import ANSWER, HEADER, UNOPENED, AnswerFormat, is_reasoning
from moe_local.telemetry import Counting

DAMAGED = "the model's output is not a number (NaN or infinite): its weights are damaged, or overflow in this dtype"
DAMAGED_REMEDY = "download it again, or try --dtype float32"
_HEADERS = (HEADER, "role")

OnText = Callable[[str], None]


def _ignore(piece: str) -> None:
    pass


class AnswerStream:
    """Fed token ids of an answer; hands on pieces of text as they become certain.

    `format` says how reasoning is marked off, and `prompt` which tokens came before, which may have opened it
    already; without a format everything is the answer. Stop strings count in the answer only.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        stop: Sequence[str] = (),
        *,
        format: AnswerFormat | None = None,
        prompt: Sequence[int] = (),
        on_text: OnText | None = None,
        on_reasoning: OnText | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._words = _Words(tokenizer, self._take)
        self._stop = stop
        self._withhold = max((len(each) for each in stop), default=1) - 1
        self._on_text, self._on_reasoning = on_text or _ignore, on_reasoning or _ignore
        self._handed = 0
        self._text, self._reasoning, self._header = "", "", ""
        self._reasons = False  # there is, or was, a place for reasoning, were it empty
        self.stopped = False
        self._region = ANSWER
        self._marks: Mapping[int, str] = {}
        self._answers_once = False
        self._parser: Any = None
        self._unrouted = ""  # text that the parser has, and has not told of
        if format is not None:
            self._begin(format, prompt)

    def _begin(self, format: AnswerFormat, prompt: Sequence[int]) -> None:
        try:
            self._parser = format.parser(self._tokenizer, self._tokenizer.decode(list(prompt)))
        except ValueError:  # of a template that a checkpoint brought, and that makes no sense
            return
        self._marks = format.marks
        self._answers_once = format.answers_once
        self._route(self._parser.initial_events)

    @property
    def text(self) -> str:
        """The answer so far."""
        return self._text

    @property
    def reasoning(self) -> str:
        """What was said on the way to it."""
        return self._reasoning.strip()

    def add(self, token: int) -> None:
        """The next token."""
        mark = self._marks.get(token)
        if mark is None:
            self._words.add(token)
            return
        self._words.flush()
        self._take(mark)

    def end(self) -> None:
        """No more tokens: what was held back is certain now."""
        self._words.flush()
        self._finish()
        if not self._text and not self._reasons and self._header:  # it never came to what the header is of
            self._answer(self._header.removeprefix("assistant"))
        self._hand_on(len(self._text))

    def pending_stop(self) -> bool:
        """Whether a stop string has been written, counting what is not yet certain to be a word's end."""
        if not self._stop or self.stopped or self._region != ANSWER:
            return self.stopped
        return any(each in self._text + self._words.pending() for each in self._stop)

    def _take(self, text: str) -> None:
        if not text or self.stopped:
            return
        if self._parser is None:
            self._answer(text)
            return
        self._unrouted += text
        try:
            events = self._parser.feed(text)
        except Exception:  # whatever a template that a checkpoint brought makes of the parser
            self._give_up()
        else:
            self._route(events)

    def _finish(self) -> None:
        if self._parser is None or self.stopped:
            return
        try:
            _, events = self._parser.finalize()
        except Exception:
            self._give_up()
        else:
            self._route(events)

    def _give_up(self) -> None:
        """From here on everything is the answer, with what the parser held back."""
        self._parser = None
        held, self._unrouted = self._unrouted, ""
        self._answer(held)

    def _route(self, events: Sequence[dict[str, Any]]) -> None:
        for event in events:
            if self.stopped:
                return
            kind, field = event["type"], event["field"]
            if kind == "region_open":
                self._open(field)
            elif kind == "region_close":
                self._close(field)
            else:
                self._unrouted = self._unrouted.partition(event["text"])[2]
                self._say(field, event["text"])

    def _open(self, field: str) -> None:
        self._region = field if is_reasoning(field) or field in _HEADERS else ANSWER
        self._reasons |= is_reasoning(field)
        if field == UNOPENED and not self._reasons:
            # What came until now was reasoning; pieces that were handed on cannot be taken back.
            self._reasoning, self._text, self._handed, self._reasons = self._text, "", 0, True

    def _close(self, field: str) -> None:
        if field == ANSWER and self._answers_once and self._text:
            self.stopped = True
        self._region = ANSWER

    def _say(self, field: str, text: str) -> None:
        if is_reasoning(field):
            self._reason(text)
        elif field in _HEADERS:
            self._header += text
        else:
            self._answer(text)

    def _reason(self, text: str) -> None:
        text = text if self._reasoning else text.lstrip()
        self._reasoning += text
        if text:
            self._on_reasoning(text)

    def _answer(self, text: str) -> None:
        if self._reasons and not self._text:
            text = text.lstrip()  # lines that set it off
        self._text += text
        found = [at for at in (self._text.find(each) for each in self._stop) if at >= 0]
        if found:
            self.stopped = True
            self._text = self._text[: min(found)]
        self._hand_on(len(self._text) if self.stopped else len(self._text) - self._withhold)

    def _hand_on(self, safe: int) -> None:
        if safe > self._handed:
            self._on_text(self._text[self._handed : safe])
            self._handed = safe


class _Words(TextStreamer):  # type: ignore[misc]
    """transformers' streamer, which holds text back until it is whole words."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, take: OnText) -> None:
        super().__init__(tokenizer, skip_prompt=False, skip_special_tokens=True)
        self._hand = take

    def add(self, token: int) -> None:
        self.put(torch.tensor([token]))

    def flush(self) -> None:
        if self.token_cache:
            self.end()

    def pending(self) -> str:
        """Text that is not handed on yet."""
        text: str = self.tokenizer.decode(self.token_cache, skip_special_tokens=True)
        return text[self.print_len :]

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self._hand(text)


class TokenStream(BaseStreamer):  # type: ignore[misc]
    """What `generate` hands its tokens to: the prompt first, then one at a time."""

    def __init__(self, answer: AnswerStream, counters: Counting) -> None:
        self.answer = answer
        self._prompt_seen = False
        self._counters = counters
        self.counters_before = self.counters_at_first_token = counters.snapshot()
        self.token_times: list[float] = []  # seconds of `perf_counter`, as all times here
        self.began = perf_counter()

    @property
    def first_token_at(self) -> float:
        """When the answer's first token came; when it began, where none did."""
        return self.token_times[0] if self.token_times else self.began

    def put(self, value: Tensor) -> None:
        """Called by `generate`: the prompt [1, T] the first time, then each token [1] of the answer."""
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        self.token_times.append(perf_counter())
        if len(self.token_times) == 1:
            self.counters_at_first_token = self._counters.snapshot()
        self.answer.add(int(value))

    def end(self) -> None:
        """Called by `generate` at its end."""
        self.answer.end()


class Halt(StoppingCriteria):  # type: ignore[misc]
    """Ends a generation at a stop string or when the user asks."""

    def __init__(self, answer: AnswerStream, event: threading.Event) -> None:
        self.answer = answer
        self._event = event
        self.interrupted = False

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        self.interrupted = self._event.is_set()
        done = self.interrupted or self.answer.pending_stop()
        return torch.full((input_ids.shape[0],), done, device=input_ids.device)


class RefuseDamage(LogitsProcessor):  # type: ignore[misc]
    """Damaged weights give what is no number; sampling from it would be noise or an obscure error."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        refuse_damage(scores)
        return scores


def refuse_damage(scores: Tensor) -> None:
    """Raises CheckpointError for scores [..., V] of which any cannot be chosen from."""
    if not all(map(math.isfinite, scores.amax(dim=-1).flatten().tolist())):
        raise CheckpointError(DAMAGED, remedy=DAMAGED_REMEDY)


def damaged(scores: Tensor) -> Tensor:
    """[...] bool: where the best of scores [..., V] is no number (NaN), or infinite, or there is none."""
    return ~scores.amax(dim=-1).isfinite()
