"""Replies: JSON that any text can be said in, refusals, and streams of events that end when the client goes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from moe_local.serve.errors import RefusedError

OF_ANTHROPIC = "/v1/messages"  # the paths that begin so speak Anthropic's protocol
HERE = ": here\n\n"  # a comment: clients do not see it
_QUIET = 15.0  # seconds after which a stream says that it is there
T = TypeVar("T")


class Reply(JSONResponse):
    """JSON in ASCII: a text may have halves of characters, which UTF-8 cannot say."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, separators=(",", ":")).encode()


def refusal(error: RefusedError, path: str) -> Response:
    """A refused request's reply, in the shape of the protocol that its path is of."""
    said = error.for_anthropic() if path.startswith(OF_ANTHROPIC) else error.for_openai()
    return Reply(said, status_code=error.status, headers=error.headers)


class ClientGoneError(Exception):
    """Nobody waits for the reply any more."""


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """What `work` gives; cancelled, with ClientGoneError, once the client has gone."""
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_gone(request.receive))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGoneError
    finally:
        for each in (task, watch):
            each.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await task


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


# Of a route's description: it may answer so.
STREAMS: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}


class EventStream(Response):
    """Server-sent events of `events`, each a text to be sent as it is; ends with them, or when the client goes.

    `leave` is called at the end, whatever ends it; `alive` is said after a while in which nothing else was.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncIterator[str],
        leave: Callable[[], Awaitable[None]],
        seconds: float,
        alive: str,
    ) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events = events
        self._leave = leave
        self._seconds = seconds
        self._alive = alive

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        speaking = asyncio.ensure_future(self._speak(send))
        listening = asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait({speaking, listening}, return_when=asyncio.FIRST_COMPLETED, timeout=self._seconds)
            if speaking.done():
                speaking.result()
        finally:
            for each in (speaking, listening):
                each.cancel()
            await asyncio.gather(speaking, listening, return_exceptions=True)
            await self._leave()

    async def _speak(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        source = aiter(self._events)
        upcoming = asyncio.ensure_future(_next(source))
        try:
            while True:
                done, _ = await asyncio.wait({upcoming}, timeout=_QUIET)
                text = upcoming.result() if done else self._alive
                if text is None:
                    break
                await self._send(send, text)
                if done:
                    upcoming = asyncio.ensure_future(_next(source))
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            upcoming.cancel()
            await asyncio.gather(upcoming, return_exceptions=True)
            if (close := getattr(self._events, "aclose", None)) is not None:
                await close()

    @staticmethod
    async def _send(send: Callable[[Any], Awaitable[None]], text: str) -> None:
        body = text.encode("utf-8", "replace")
        await send({"type": "http.response.body", "body": body, "more_body": True})


async def _next(source: AsyncIterator[str]) -> str | None:
    return await anext(source, None)


def event(data: Any, name: str | None = None) -> str:
    """A server-sent event with JSON."""
    begin = "" if name is None else f"event: {name}\n"
    return f"{begin}data: {json.dumps(data, separators=(',', ':'))}\n\n"
