"""A conversation: messages, the model's own template, and a KV cache that lives from turn to turn."""

from __future__ import annotations

import threading
from bisect import bisect_left
from pathlib import Path
from typing import TypedDict, Unpack

from moe_local.errors import MoeLocalError
from moe_local.generation.encoder_decoder import assert_goes_on
from moe_local.generation.encoding import TooLongError
from moe_local.generation.generate import Generation, TextGenerator
from moe_local.generation.kv_reuse import KVState
from moe_local.generation.messages import Message
from moe_local.generation.prompt import render
from moe_local.generation.sampling import Sampling
from moe_local.generation.stream import OnText
from moe_local.generation.transcript import Transcript

_SHARE = 4  # of the context: the part of it that an answer is left, at least


class Watching(TypedDict, total=False):
    """How a caller follows an answer as it is made, and ends it; see `TextGenerator.generate`."""

    on_text: OnText | None
    on_reasoning: OnText | None
    interrupt: threading.Event | None


class ChatSession(Transcript):
    """One conversation with a loaded model."""

    def __init__(self, generator: TextGenerator, sampling: Sampling, *, system: str | None = None) -> None:
        assert_goes_on(generator.model, "a chat")
        super().__init__(sampling, system)
        self._generator = generator
        self._state = KVState()
        self.context_shift = True  # a full context goes on without the oldest turns; else it is an error
        self._left_out = 0  # of the messages after the system's, that the context has no room for any more

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
        messages = self.unanswered()
        ids, left_out = self._prompt(messages)
        answer = self._generator.generate(ids, self.sampling, state=self._state, chat=True, **watching)
        self._take_up(messages, answer, left_out)
        return answer

    def undo(self) -> None:
        """Forgets the last message of the user's and what came after. Raises MoeLocalError where there is none."""
        super().undo()
        self._left_out = 0  # decided anew: the last message may have been what drove the others out

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
        super().reset()
        self._left_out = 0
        self._state.clear()

    def load(self, file: Path) -> None:
        """Takes up messages that `save` wrote. Raises MoeLocalError for any other file."""
        super().load(file)
        self._left_out = 0
