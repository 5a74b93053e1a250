"""An answer as it comes: its text piece by piece, reasoning and calls of tools apart, nothing of a stop string."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, TextStreamer

from moe_local.generation.channels import ANSWER, CALL, HEADER, UNOPENED, AnswerFormat, is_reasoning
from moe_local.generation.tools.base import CallPiece, ToolCall
from moe_local.generation.tools.reader import CallReader

_HEADERS = (HEADER, "role")

OnText = Callable[[str], None]
OnCall = Callable[[CallPiece], None]


def _ignore(piece: str) -> None:
    pass


class AnswerStream:
    """Fed token ids of an answer; hands on pieces of text as they become certain.

    `format` says how reasoning is marked off, and `prompt` which tokens came before, which may have opened it
    already; without a format everything is the answer. Stop strings count in the answer only. With `calls` the
    answer's calls of tools are taken out of it.
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
        calls: CallReader | None = None,
        on_call: OnCall | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self.tool_calls: list[ToolCall] = []
        self._calls = calls
        self._on_call = on_call or (lambda piece: None)
        self._call = ""  # the text of a call that has a region of its own, so far
        self._to = ""  # the last header
        self._words = _Words(tokenizer, self._take)
        self._stop = stop
        self._withhold = max((len(each) for each in stop), default=1) - 1
        self._on_text, self._on_reasoning = on_text or _ignore, on_reasoning or _ignore
        self._handed = 0
        self._text, self._reasoning, self._header = "", "", ""
        self._reasons = False  # there is, or was, a place for reasoning, were it empty
        self.stopped = False
        self.stopped_by: str | None = None  # the stop string that ended it
        self._region = ANSWER
        self._marks: Mapping[int, str] = {}
        self._answers_once = False
        self._parser: Any = None
        self._unrouted = ""  # text that the parser has, and has not told of
        if format is not None:
            self._begin(format, prompt)

    def _begin(self, format: AnswerFormat, prompt: Sequence[int]) -> None:
        if self._calls is not None:
            format = format.with_calls()
        try:
            self._parser = format.parser(self._tokenizer, self._tokenizer.decode(list(prompt)))
        except ValueError:  # of a template that a checkpoint brought, and that makes no sense
            return
        self._marks = format.marks if self._calls is None else {**format.marks, **self._calls.marks}
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
        if self._calls is not None:
            self._called(self._call)
            self._sort(self._calls.end())
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
        if field == HEADER:
            self._to = ""
        if self._calls is not None and is_reasoning(field) and "to=" in self._to:
            field, self._call = CALL, f"{self._to}<|message|>"  # whom it is for was said in its header
        if self._calls is not None and field == CALL:
            self._region = CALL
            return
        self._region = field if is_reasoning(field) or field in _HEADERS else ANSWER
        self._reasons |= is_reasoning(field)
        if field == UNOPENED and not self._reasons:
            # What came until now was reasoning; pieces that were handed on cannot be taken back.
            self._reasoning, self._text, self._handed, self._reasons = self._text, "", 0, True

    def _close(self, field: str) -> None:
        if field == ANSWER and self._answers_once and self._text:
            self.stopped = True
        if self._region == CALL:
            held, self._call, self._to = self._call, "", ""
            self._called(held)
        self._region = ANSWER

    def _say(self, field: str, text: str) -> None:
        if self._region == CALL:
            self._call += text
        elif is_reasoning(field):
            self._reason(text)
        elif field in _HEADERS:
            self._header += text
            self._to += text
        else:
            self._answer(text)

    def _reason(self, text: str) -> None:
        text = text if self._reasoning else text.lstrip()
        self._reasoning += text
        if text:
            self._on_reasoning(text)

    def _called(self, text: str) -> None:
        """What a region of a call had in it."""
        if text and self._calls is not None:
            self._sort(self._calls.region(text))

    def _answer(self, text: str) -> None:
        if self._calls is None:
            self._take_up(text)
        else:
            self._sort(self._calls.feed(text))

    def _sort(self, found: Iterable[str | ToolCall]) -> None:
        """Text and calls, each to its place."""
        for each in found:
            if isinstance(each, str):
                self._take_up(each)
            else:
                self._on_call(CallPiece(len(self.tool_calls), each.name, each.arguments))
                self.tool_calls.append(each)

    def _take_up(self, text: str) -> None:
        if self.stopped:
            return
        if self._reasons and not self._text:
            text = text.lstrip()  # lines that set it off
        self._text += text
        found = [at for at in (self._text.find(each) for each in self._stop) if at >= 0]
        if found:
            self.stopped = True
            self.stopped_by = next(each for each in self._stop if self._text.startswith(each, min(found)))
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
