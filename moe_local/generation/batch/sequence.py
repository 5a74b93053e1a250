"""A request of a batch under way."""

from __future__ import annotations

from moe_local.generation.batch.choice import Choice
from moe_local.generation.batch.request import Answer, Request
from moe_local.generation.generate import TextGenerator
from moe_local.generation.prompt import is_chat
from moe_local.generation.stream import AnswerStream


class BatchSequence:
    """The tokens of a request's prompt `ids` and of its answer so far, and what chooses, reads and ends the answer.

    Raises MoeLocalError for a prompt that cannot be run, and ValueError for options that transformers refuses.
    """

    def __init__(self, request: Request, ids: list[int], generator: TextGenerator) -> None:
        self.request = request
        self.ids = ids
        self.prompt_tokens = len(ids)
        self.limit = generator.limit(ids, request.sampling)  # tokens of the answer
        self.choice = Choice(generator.model, request.sampling, len(ids))
        chat = is_chat(generator, request.prompt, raw=request.raw)
        self._stream = self._answer_stream(generator, chat)
        self._ends = generator.end_tokens
        self.shared = 0  # tokens that the others begin with as well, computed already

    def _answer_stream(self, generator: TextGenerator, chat: bool) -> AnswerStream:
        return generator.answer_stream(self.ids, self.request.sampling, chat)

    @property
    def length(self) -> int:
        """Tokens of the prompt, and of the answer so far."""
        return len(self.ids)

    @property
    def left(self) -> int:
        """Tokens that may still follow."""
        return self.prompt_tokens + self.limit - len(self.ids)

    def add(self, token: int) -> str | None:
        """The finish reason, if this token ends it."""
        self.ids.append(token)
        self._stream.add(token)
        if token in self._ends or self._stream.pending_stop():
            return "stop"
        return None if self.left else "length"

    def answer(self, reason: str) -> Answer:
        """What came of it, ended for this finish reason."""
        self._stream.end()
        return Answer(
            self.request,
            self._stream.text,
            self.ids[self.prompt_tokens :],
            self.prompt_tokens,
            reason,
            reasoning=self._stream.reasoning,
            tool_calls=self._stream.tool_calls,
            stop_string=self._stream.stopped_by,
        )
