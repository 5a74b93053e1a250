"""A request whose answer somebody follows while it is made, and may stop waiting for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from moe_local.generation.batch.kv_rows import KVRows
from moe_local.generation.batch.request import Answer, Request
from moe_local.generation.batch.sequence import BatchSequence
from moe_local.generation.batch.steering import SteeredChoice, TokenChoice, told
from moe_local.generation.generate import TextGenerator
from moe_local.generation.stream import AnswerStream
from moe_local.generation.tools.base import CallPiece


@dataclass
class Served:
    """Totals since it began."""

    prompt_tokens: int = 0
    cached_tokens: int = 0  # of the prompts', computed before
    new_tokens: int = 0
    passes: int = 0  # that chose tokens
    put_back: int = 0  # sequences that had to make room, and began again later


class Follower(Protocol):
    """Who follows an answer: told in the thread that generates, so that it must not wait for anything."""

    @property
    def gone(self) -> bool:
        """Whether the answer is not wanted any more."""

    def on_begin(self, cached_tokens: int) -> None:
        """The prompt is being read; so many of its tokens were computed before. Again where it had to make room."""

    def on_text(self, piece: str) -> None: ...

    def on_reasoning(self, piece: str) -> None: ...

    def on_call(self, piece: CallPiece) -> None: ...

    def on_token(self, chosen: TokenChoice) -> None:
        """Only where log probabilities were asked for; before the text that the token ends."""

    def on_end(self, answer: Answer) -> None:
        """The whole answer, or the error that ended it. Nothing follows."""


class FollowedSequence(BatchSequence):
    """A sequence with its KV cache while its prompt is read. Raises as `BatchSequence`."""

    def __init__(self, request: Request, ids: list[int], generator: TextGenerator, follower: Follower) -> None:
        self.follower = follower
        self.at = 0  # tokens at its beginning that are computed
        self.cached = 0  # of the prompt, that were computed before it came
        self.row: KVRows | None = None  # of these tokens, while the prompt is read
        self.after: FollowedSequence | None = None  # that will have computed much of this prompt as well
        super().__init__(request, ids, generator)
        self.steered = SteeredChoice(self.choice, request.steering)

    def _answer_stream(self, generator: TextGenerator, chat: bool) -> AnswerStream:
        return generator.answer_stream(
            self.ids,
            self.request.sampling,
            chat,
            self.follower.on_text,
            self.follower.on_reasoning,
            self.request.tools,
            self.follower.on_call,
        )

    def go_on_from(self, tokens: int, row: KVRows | None) -> None:
        """Its first `tokens` are computed: here is their cache."""
        self.at, self.row = tokens, row
        self.cached = min(tokens, self.prompt_tokens)
        self.follower.on_begin(self.cached)

    def take(self, scores: Tensor, likeliest: int) -> str | None:
        """Chooses a token by logits [V], of which one is `likeliest`; the finish reason, if it ends the answer."""
        token = likeliest if self.steered.plain else self.steered(self.ids, scores)
        if (count := self.request.steering.logprobs) is not None:
            self.follower.on_token(told(token, scores, count))
        return self.add(token)

    def ended(self, reason: str) -> None:
        """Tells the whole answer."""
        self.follower.on_end(self.answer(reason))

    def failed(self, error: str) -> None:
        """Tells that there will be no answer, or none that is whole."""
        self.follower.on_end(Answer(self.request, prompt_tokens=self.prompt_tokens, error=error))

    @property
    def computed(self) -> Sequence[int]:
        """The tokens whose keys and values are in its row while it runs: all but the last, which was only chosen."""
        return self.ids[:-1]
