"""An answer as blocks, one after the other: reasoning, text, calls of tools."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from moe_local.generation.batch import Answer
from moe_local.serve.feed import Call, Ended, Event, Reasoning, Text


class Kind(StrEnum):
    """What a block is of."""

    REASONING = "reasoning"
    TEXT = "text"
    CALL = "call"


class Step(StrEnum):
    """What becomes of a block."""

    BEGINS = "begins"
    GOES_ON = "goes on"
    ENDS = "ends"


@dataclass
class Block:
    """One of them, as far as it has come; of a call the text is its arguments, in JSON."""

    kind: Kind
    number: int
    text: str = ""
    name: str = ""  # of the function that is called


class Blocks:
    """Makes blocks of an answer's events."""

    def __init__(self) -> None:
        self.made: list[Block] = []
        self._open: Block | None = None
        self._call = -1  # the number of the call that is open

    def take(self, event: Event) -> Iterator[tuple[Step, Block, str]]:
        """What an event does to the blocks, with the piece that comes."""
        if isinstance(event, Text):
            yield from self._piece(Kind.TEXT, event.piece)
        elif isinstance(event, Reasoning):
            yield from self._piece(Kind.REASONING, event.piece)
        elif isinstance(event, Ended):
            yield from self._end()
        elif isinstance(event, Call):
            fresh = event.piece.index != self._call
            self._call = event.piece.index
            yield from self._piece(Kind.CALL, event.piece.arguments, event.piece.name or "", fresh=fresh)

    def _end(self) -> Iterator[tuple[Step, Block, str]]:
        """The last one ends."""
        if self._open is not None:
            yield Step.ENDS, self._open, ""
            self._open = None

    def _piece(
        self, kind: Kind, piece: str, name: str = "", *, fresh: bool = False
    ) -> Iterator[tuple[Step, Block, str]]:
        if self._open is None or self._open.kind is not kind or fresh:
            yield from self._end()
            self._open = Block(kind, len(self.made), name=name)
            self.made.append(self._open)
            yield Step.BEGINS, self._open, ""
        self._open.text += piece
        if piece:
            yield Step.GOES_ON, self._open, piece


def blocks_of(answer: Answer) -> list[Block]:
    """Those of a whole answer."""
    found = [Block(Kind.REASONING, 0, answer.reasoning)] if answer.reasoning else []
    if answer.text or not (answer.reasoning or answer.tool_calls):
        found.append(Block(Kind.TEXT, len(found), answer.text))
    for call in answer.tool_calls:
        found.append(Block(Kind.CALL, len(found), call.arguments, call.name))
    return found
