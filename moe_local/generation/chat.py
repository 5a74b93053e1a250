"""A conversation: messages, the model's own template, and a KV cache that lives from turn to turn."""

from __future__ import annotations

import json
import threading
from bisect import bisect_left
from pathlib import Path
from typing import TypedDict, Unpack

from moe_local.checkpoint.json_file import parse_json
from moe_local.checkpoint.regular import read_regular
from moe_local.errors import MoeLocalError
from moe_local.files import atomic_write
from moe_local.generation.encoder_decoder import assert_goes_on
from moe_local.generation.encoding import TooLongError
from moe_local.generation.generate import Generation, TextGenerator
from moe_local.generation.kv_reuse import KVState
from moe_local.generation.messages import Message
from moe_local.generation.prompt import render
from moe_local.generation.sampling import Sampling
from moe_local.generation.stream import OnText
from moe_local.generation.template import REASONING_KEYS

_SHARE = 4  # of the context: the part of it that an answer is left, at least
_MOST = 48 << 20  # bytes of a saved conversation


class Watching(TypedDict, total=False):
    """How a caller follows an answer as it is made, and ends it; see `TextGenerator.generate`."""

    on_text: OnText | None
    on_reasoning: OnText | None
    interrupt: threading.Event | None


class ChatSession:
    """One conversation with a loaded model."""

    def __init__(self, generator: TextGenerator, sampling: Sampling, *, system: str | None = None) -> None:
        assert_goes_on(generator.model, "a chat")
        self._generator = generator
        self._state = KVState()
        self.sampling = sampling
        self.context_shift = True  # a full context goes on without the oldest turns; else it is an error
        self.messages: list[Message] = []
        self._left_out = 0  # of the messages after the system's, that the context has no room for any more
        if system:
            self.messages.append({"role": "system", "content": system})

    @property
    def system(self) -> str | None:
        """The system message's text; None where the conversation begins without one."""
        first = self.messages[0] if self.messages else {}
        return first["content"] if first.get("role") == "system" else None

    def set_system(self, text: str | None) -> None:
        """Replaces the system message; the conversation goes on."""
        rest = [message for message in self.messages if message["role"] != "system"]
        self.messages = ([{"role": "system", "content": text}] if text else []) + rest

    def send(self, text: str, **watching: Unpack[Watching]) -> Generation:
        """Adds a user message and answers it. On an error the conversation is as it was before.

        Where it fills the context, the oldest turns are left out of what the model is given, and that is said;
        without `context_shift` that is a MoeLocalError.
        """
        messages = [*self.messages, {"role": "user", "content": text}]
        ids, left_out = self._prompt(messages)
        answer = self._generator.generate(ids, self.sampling, state=self._state, chat=True, **watching)
        self._take_up(messages, answer, left_out)
        return answer

    def regenerate(self, **watching: Unpack[Watching]) -> Generation:
        """Answers the last user message again, in place of the last answer."""
        if len(self.messages) < 2 or self.messages[-1]["role"] != "assistant":
            raise MoeLocalError("there is no answer to regenerate", remedy="ask something first")
        messages = self.messages[:-1]
        ids, left_out = self._prompt(messages)
        answer = self._generator.generate(ids, self.sampling, state=self._state, chat=True, **watching)
        self._take_up(messages, answer, left_out)
        return answer

    def undo(self) -> None:
        """Forgets the last message of the user's and what came after. Raises MoeLocalError where there is none."""
        asked = [at for at, message in enumerate(self.messages) if message["role"] == "user"]
        if not asked:
            raise MoeLocalError("there is nothing to undo", remedy="say something first")
        # What has room is decided anew: the last message may have been what drove the others out.
        self.messages, self._left_out = self.messages[: asked[-1]], 0

    def _take_up(self, messages: list[Message], answer: Generation, left_out: int) -> None:
        """The conversation is these messages and their answer from here on."""
        message = {"role": "assistant", "content": answer.text}
        if answer.reasoning and (key := self._generator.template.reasoning_key) is not None:
            message[key] = answer.reasoning
        self.messages, self._left_out = [*messages, message], left_out

    def _prompt(self, messages: list[Message]) -> tuple[list[int], int]:
        """Token ids of what the context has room for, and how many messages are left out of it; says if more are."""
        ids, left_out = self._fitted(messages)
        if left_out > self._left_out:
            self._generator.on_notice(
                f"the context of {self._generator.context} tokens is full: the oldest"
                f" {left_out - self._left_out} messages are left out from here on"
            )
        return ids, left_out

    def _fitted(self, messages: list[Message]) -> tuple[list[int], int]:
        """Token ids of what the context has room for, and how many of the oldest messages are left out of it.

        When it is full, so many that half of it is free again: what follows can then go on from the KV cache.
        """
        system = [message for message in messages if message["role"] == "system"]
        turns = [message for message in messages if message["role"] != "system"]
        context = self._generator.context
        if not self.context_shift:
            return self._whole(system, turns[self._left_out :], context), self._left_out
        begins = [at for at, message in enumerate(turns) if message["role"] == "user" and at >= self._left_out]
        answer = min(self.sampling.max_new_tokens or context, max(1, context // _SHARE))
        most = context - answer
        if (ids := self._within(system, turns[self._left_out :], most)) is not None:
            return ids, self._left_out
        later = [at for at in begins if at > self._left_out]
        # The earliest with which half of the context is left: the more is left out, the shorter it is.
        first = bisect_left(later, True, key=lambda at: self._within(system, turns[at:], context // 2) is not None)
        begin = later[min(first, len(later) - 1)] if later else self._left_out
        return self._whole(system, turns[begin:], context), begin

    def _whole(self, system: list[Message], turns: list[Message], context: int) -> list[int]:
        """Token ids of a conversation, which leave an answer one at least. Raises MoeLocalError where they do not."""
        if (ids := self._within(system, turns, context - 1)) is not None:
            return ids
        if self.context_shift or len(turns) == 1:
            raise MoeLocalError(
                f"the message has more tokens than the context of {context} holds",
                remedy="shorten it, or begin the chat with a larger --context",
            )
        raise MoeLocalError(
            f"the conversation is longer than the context of {context} tokens",
            remedy="/clear forgets it and /undo its last exchange, or begin the chat with a larger --context",
        )

    def _within(self, system: list[Message], turns: list[Message], most: int) -> list[int] | None:
        """Token ids of a conversation; None where they are more than `most`."""
        try:
            ids = render(self._generator, [*system, *turns])
        except TooLongError:
            return None
        return ids if len(ids) <= most else None

    def reset(self) -> None:
        """Forgets everything but the system message."""
        self.messages = [message for message in self.messages if message["role"] == "system"]
        self._left_out = 0
        self._state.clear()

    def save(self, file: Path) -> None:
        """Writes the messages as JSON; the file appears whole or not at all."""
        text = json.dumps(self.messages, ensure_ascii=False, indent=2)
        try:
            with atomic_write(file) as stream:
                stream.write(text.encode())
        except (OSError, ValueError) as error:  # ValueError: a name that no file can have
            raise MoeLocalError(f"cannot write {file} ({error})", remedy="choose another place") from error

    def load(self, file: Path) -> None:
        """Takes up messages that `save` wrote. Raises MoeLocalError for any other file."""
        try:
            messages = parse_json(read_regular(file, _MOST))
        except OSError as error:
            raise MoeLocalError(f"cannot read {file}: {error.strerror}", remedy="check the name") from error
        except ValueError as error:
            raise MoeLocalError(f"{file} is not JSON ({error})", remedy="load what /save wrote") from error
        if not isinstance(messages, list) or not all(_is_message(message) for message in messages):
            raise MoeLocalError(f"{file} does not hold chat messages", remedy="load what /save wrote")
        self.messages, self._left_out = messages, 0


def _is_message(value: object) -> bool:
    return (
        isinstance(value, dict)
        and {"role", "content"} <= value.keys() <= {"role", "content", *REASONING_KEYS}
        and value["role"] in ("system", "user", "assistant")
        and all(isinstance(text, str) for text in value.values())
    )
