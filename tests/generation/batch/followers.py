"""Followers that remember what they were told."""

from __future__ import annotations

from collections.abc import Sequence

from moe_local.engine import Engine
from moe_local.generation.batch import Answer, FollowedSequence, LiveBatch, Request
from moe_local.generation.batch.steering import TokenChoice
from moe_local.generation.tools import CallPiece


class Memory:
    """What it was told, in order, and whether it is there still."""

    def __init__(self) -> None:
        self.gone = False
        self.text = ""
        self.reasoning = ""
        self.calls: list[CallPiece] = []
        self.cached = 0
        self.tokens: list[TokenChoice] = []
        self.answer: Answer | None = None

    def on_begin(self, cached_tokens: int) -> None:
        assert self.answer is None
        self.cached = cached_tokens

    def on_text(self, piece: str) -> None:
        assert self.answer is None
        self.text += piece

    def on_reasoning(self, piece: str) -> None:
        self.reasoning += piece

    def on_call(self, piece: CallPiece) -> None:
        assert self.answer is None
        self.calls.append(piece)

    def on_token(self, chosen: TokenChoice) -> None:
        self.tokens.append(chosen)

    def on_end(self, answer: Answer) -> None:
        assert self.answer is None
        self.answer = answer

    @property
    def ids(self) -> list[int]:
        assert self.answer is not None
        assert self.answer.error is None, self.answer.error
        return list(self.answer.token_ids)


def ask(engine: Engine, batch: LiveBatch, request: Request, ids: Sequence[int]) -> Memory:
    memory = Memory()
    batch.add(FollowedSequence(request, list(ids), engine.generator, memory))
    return memory


def finish(batch: LiveBatch, most: int = 10_000) -> int:
    """Steps until nobody is left -> how many that were."""
    steps = 1
    while batch.step():
        steps += 1
        assert steps < most
    return steps
