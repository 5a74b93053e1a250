"""A conversation with a server: what was said is kept here and sent whole each time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from moe_local.errors import MoeLocalError
from moe_local.generation.messages import Message
from moe_local.generation.sampling import Sampling
from moe_local.generation.template_settings import TemplateSettings, thinking
from moe_local.generation.transcript import REASONING_KEYS, Transcript

from .remote_server import RemoteServer

OnText = Callable[[str], None]
_REASONING = REASONING_KEYS[0]
_NAMES = {"max_new_tokens": "max_tokens"}  # of settings that OpenAI calls otherwise


@dataclass
class RemoteAnswer:
    """What came of a request. Tokens are None where the server did not say, as of an answer that was ended."""

    text: str = ""
    reasoning: str = ""
    finish_reason: str | None = None  # `stop`, `length`, `interrupted`, or whatever else a server says
    prompt_tokens: int | None = None
    cached_tokens: int = 0
    new_tokens: int | None = None
    time_to_first_token: float = math.nan  # seconds from asking
    seconds: float = math.nan  # to the last piece

    @property
    def tokens_per_second(self) -> float:
        """Of those after the first; NaN where that is not known."""
        between = self.seconds - self.time_to_first_token
        return (self.new_tokens - 1) / between if self.new_tokens and between > 0 else math.nan


class RemoteSession(Transcript):
    """One conversation with a model of a server."""

    def __init__(
        self, server: RemoteServer, model: str, sampling: Sampling, template: TemplateSettings, system: str | None
    ) -> None:
        super().__init__(sampling, system)
        self._server = server
        self.model = model
        self.template = template

    def send(self, text: str, *, on_text: OnText, on_reasoning: OnText) -> RemoteAnswer:
        """Adds a user message and has it answered. On an error the conversation is as it was before."""
        return self._answer([*self.messages, {"role": "user", "content": text}], on_text, on_reasoning)

    def regenerate(self, *, on_text: OnText, on_reasoning: OnText) -> RemoteAnswer:
        """Has the last user message answered again, in place of the last answer."""
        return self._answer(self.unanswered(), on_text, on_reasoning)

    def load(self, file: Path) -> None:
        """Takes up messages that `save` wrote, here or in a chat with a model of one's own."""
        super().load(file)
        self.messages = [_as_sent(message) for message in self.messages]

    def _answer(self, messages: list[Message], on_text: OnText, on_reasoning: OnText) -> RemoteAnswer:
        """Ctrl-C ends the answer: the connection is closed, and what came till then is the answer."""
        answer, began = RemoteAnswer(), perf_counter()
        try:
            with closing(self._server.events(self._body(messages))) as events:
                for kind, piece in _pieces(events, answer):
                    answer.seconds = perf_counter() - began
                    if math.isnan(answer.time_to_first_token):
                        answer.time_to_first_token = answer.seconds
                    (on_reasoning if kind == _REASONING else on_text)(piece)
        except KeyboardInterrupt:
            answer.finish_reason = "interrupted"
        said = {"role": "assistant", "content": answer.text}
        self.messages = [*messages, said | ({_REASONING: answer.reasoning} if answer.reasoning else {})]
        return answer

    def _body(self, messages: list[Message]) -> dict[str, Any]:
        set_ = {name: value for name, value in vars(self.sampling).items() if value not in (None, ())}
        told = {**thinking(self.template.level), **self.template.variables}
        return {
            "model": self.model,
            "messages": messages,
            "stream": True,
            "stream_options": {"include_usage": True},
            **{_NAMES.get(name, name): value for name, value in set_.items()},
            **({"chat_template_kwargs": told} if told else {}),
        }


def _pieces(events: Iterator[Mapping[str, Any]], answer: RemoteAnswer) -> Iterator[tuple[str, str]]:
    """Pieces of reasoning and text as they come, and kept in the answer with what else is said of it.

    Raises MoeLocalError for events that are none of a chat completion.
    """
    for event in events:
        try:
            found = _take(event, answer)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise MoeLocalError("the server sends what no chat completion is", remedy="check --server") from error
        yield from found


def _take(event: Mapping[str, Any], answer: RemoteAnswer) -> list[tuple[str, str]]:
    if usage := event.get("usage"):
        answer.prompt_tokens, answer.new_tokens = int(usage["prompt_tokens"]), int(usage["completion_tokens"])
        answer.cached_tokens = int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)
    found = []
    for choice in event.get("choices") or ():
        answer.finish_reason = choice.get("finish_reason") or answer.finish_reason
        delta = choice.get("delta") or {}
        if reasoning := delta.get(_REASONING) or delta.get("reasoning"):
            answer.reasoning += reasoning
            found.append((_REASONING, reasoning))
        if text := delta.get("content"):
            answer.text += text
            found.append(("content", text))
    return found


def _as_sent(message: Message) -> Message:
    """With reasoning by the name that servers know."""
    names = dict.fromkeys(REASONING_KEYS, _REASONING)
    return {names.get(key, key): value for key, value in message.items()}
