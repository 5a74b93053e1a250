"""An answer on its way from the thread that generates to the client that waits for it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from time import monotonic

from moe_local.generation.batch import Answer
from moe_local.generation.batch.steering import TokenChoice
from moe_local.generation.tools.base import CallPiece


@dataclass(frozen=True)
class Begun:
    """The prompt is being read."""

    cached_tokens: int


@dataclass(frozen=True)
class Text:
    """A piece of the answer."""

    piece: str


@dataclass(frozen=True)
class Reasoning:
    """A piece of what is said on the way to it."""

    piece: str


@dataclass(frozen=True)
class Call:
    """A piece of a tool's call."""

    piece: CallPiece


@dataclass(frozen=True)
class Ended:
    """The whole answer, or an error; nothing follows."""

    answer: Answer


Event = Begun | Text | Reasoning | Call | TokenChoice | Ended


class Feed:
    """Told in one thread (it is a `Follower`), read in the event loop that made it."""

    def __init__(self) -> None:
        self.gone = False
        self.prompt_tokens = 0
        self.asked_at = monotonic()  # seconds
        self.first_at: float | None = None  # when the first piece came
        self.ended_at: float | None = None
        self._loop = asyncio.get_running_loop()
        self._ready = asyncio.Event()
        self._events: deque[Event] = deque()

    def on_begin(self, cached_tokens: int) -> None:
        self._tell(Begun(cached_tokens))

    def on_text(self, piece: str) -> None:
        self._tell(Text(piece))

    def on_reasoning(self, piece: str) -> None:
        self._tell(Reasoning(piece))

    def on_call(self, piece: CallPiece) -> None:
        self._tell(Call(piece))

    def on_token(self, chosen: TokenChoice) -> None:
        self._tell(chosen)

    def on_end(self, answer: Answer) -> None:
        self.ended_at = monotonic()
        self._tell(Ended(answer))

    def leave(self) -> None:
        """Nobody waits any more: its place is free after the token under way."""
        self.gone = True

    async def events(self) -> AsyncIterator[Event]:
        """What comes, to the end."""
        while True:
            await self._ready.wait()
            self._ready.clear()
            while self._events:
                event = self._events.popleft()
                yield event
                if isinstance(event, Ended):
                    return

    def _tell(self, event: Event) -> None:
        if self.first_at is None and not isinstance(event, Begun):
            self.first_at = monotonic()
        self._events.append(event)
        if not self.gone and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._ready.set)
