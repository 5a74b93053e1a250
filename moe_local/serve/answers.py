"""The answers to a request, one or several: read as they come, or waited for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from time import monotonic

from moe_local.generation.batch import Answer
from moe_local.generation.batch.steering import TokenChoice
from moe_local.serve.asking import Asked
from moe_local.serve.errors import SERVER, RefusedError
from moe_local.serve.feed import Begun, Ended, Event, Feed
from moe_local.serve.service import Service


@dataclass
class Whole:
    """An answer that has come to its end."""

    answer: Answer
    cached_tokens: int = 0
    tokens: list[TokenChoice] = field(default_factory=list)  # where log probabilities were asked for


class Answers:
    """Those of several feeds, by number."""

    def __init__(self, service: Service, feeds: Sequence[Feed]) -> None:
        self._service = service
        self._feeds = feeds
        self._until = monotonic() + service.settings.seconds
        self.cached = [0] * len(feeds)
        self.prompt_tokens = feeds[0].prompt_tokens if feeds else 0

    async def events(self) -> AsyncIterator[tuple[int, Event]]:
        """What comes, with the number of the answer that it is of. Raises RefusedError where one fails, or for all
        that take too long.
        """
        coming: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        pumps = [asyncio.ensure_future(_pump(number, feed, coming)) for number, feed in enumerate(self._feeds)]
        left = len(pumps)
        try:
            while left:
                number, event = await asyncio.wait_for(coming.get(), max(0.0, self._until - monotonic()))
                if isinstance(event, Begun):
                    self.cached[number] = event.cached_tokens
                if isinstance(event, Ended):
                    left -= 1
                    if event.answer.error is not None:
                        raise RefusedError(500, event.answer.error, kind=SERVER, code="answer_failed")
                yield number, event
        except TimeoutError:
            seconds = self._service.settings.seconds
            raise RefusedError(504, f"it took longer than {seconds:.0f} s", kind=SERVER, code="timeout") from None
        finally:
            for pump in pumps:
                pump.cancel()

    async def whole(self) -> list[Whole]:
        """All of them at their ends. Raises as `events`."""
        tokens: list[list[TokenChoice]] = [[] for _ in self._feeds]
        ended: dict[int, Answer] = {}
        async for number, event in self.events():
            if isinstance(event, TokenChoice):
                tokens[number].append(event)
            elif isinstance(event, Ended):
                ended[number] = event.answer
        return [Whole(ended[n], self.cached[n], tokens[n]) for n in range(len(self._feeds))]


async def _pump(number: int, feed: Feed, into: asyncio.Queue[tuple[int, Event]]) -> None:
    async for event in feed.events():
        into.put_nowait((number, event))


@asynccontextmanager
async def answering(service: Service, asked: Sequence[Asked]) -> AsyncIterator[Answers]:
    """The answers to what is asked; those under way are given up at the end. Raises RefusedError."""
    if len(asked) > service.room:
        raise RefusedError(
            400, f"{len(asked)} answers are more than the {service.room} that are taken on at once", param="n"
        )
    feeds: list[Feed] = []
    try:
        for each in asked:
            feeds.append(await service.ask(each))
        yield Answers(service, feeds)
    finally:
        for feed in feeds:
            service.over(feed)
