"""The server's routes, over a service: FastAPI for what it is asked, our own replies."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from moe_local.errors import MoeLocalError
from moe_local.serve.answers import Answers, answering
from moe_local.serve.asking import Asked, tokens_of
from moe_local.serve.chat import ChatReply, ChatRequest
from moe_local.serve.completions import CompletionReply, CompletionRequest
from moe_local.serve.errors import (
    ERRORS_OF_ANTHROPIC,
    ERRORS_OF_OPENAI,
    NOT_FOUND,
    SERVER,
    RefusedError,
    of_validation,
    refused,
)
from moe_local.serve.fields import assert_named
from moe_local.serve.guard import Guard
from moe_local.serve.messages import CountRequest, MessagesRequest
from moe_local.serve.messages_reply import PING, MessagesReply
from moe_local.serve.metrics import Metrics
from moe_local.serve.own import add_own
from moe_local.serve.pages import page_routes
from moe_local.serve.replies import HERE, STREAMS, ClientGoneError, EventStream, Reply, refusal, unless_gone
from moe_local.serve.responses import ResponsesRequest
from moe_local.serve.responses_reply import ResponsesReply
from moe_local.serve.service import Service
from moe_local.serve.settings import Names, ServeSettings
from moe_local.version import __version__

_CLOSED = 499  # nginx's status for a client that has gone: nobody reads it


class Asking(Protocol):
    """A request's body, whatever it is called."""

    model: str | None
    stream: bool | None

    def asked(self, service: Service) -> Sequence[Asked]: ...


class Replying(Protocol):
    """What is made of its answers."""

    async def whole(self, answers: Answers) -> dict[str, Any]: ...

    def stream(self, answers: Answers) -> Any: ...


def make_app(service: Service, names: Names, settings: ServeSettings) -> FastAPI:
    """An application that answers with the service, which may still be loading."""
    app = FastAPI(title="moe-local", version=__version__, docs_url=None, redoc_url=None, responses=ERRORS_OF_OPENAI)
    metrics = Metrics(service)
    service.on_over = metrics.answered
    for kind, handler in _HANDLERS.items():
        app.add_exception_handler(kind, handler)
    _add_openai(app, service, names)
    _add_anthropic(app, service, names)
    add_own(app, service, names, metrics)
    app.router.routes.extend(page_routes())
    app.add_middleware(Counted, metrics=metrics, known=[getattr(route, "path", "") for route in app.routes])
    app.add_middleware(Guard, settings=settings)
    if settings.origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(settings.origins), allow_methods=["*"], allow_headers=["*"]
        )
    return app


def _add_openai(app: FastAPI, service: Service, names: Names) -> None:
    @app.post("/v1/chat/completions", responses=STREAMS)
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        return await answer(service, names, body, request, ChatReply(service, body, body.model or names.name))

    @app.post("/v1/completions", responses=STREAMS)
    async def completions(body: CompletionRequest, request: Request) -> Response:
        return await answer(service, names, body, request, CompletionReply(service, body, body.model or names.name))

    @app.post("/v1/responses", responses=STREAMS)
    async def responses(body: ResponsesRequest, request: Request) -> Response:
        return await answer(service, names, body, request, ResponsesReply(body, body.model or names.name))

    @app.get("/v1/models")
    async def models() -> Response:
        return Reply({"object": "list", "data": [_model(service, name) for name in names.listed]})

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        assert_named(names, name)
        return Reply(_model(service, name))


def _add_anthropic(app: FastAPI, service: Service, names: Names) -> None:
    @app.post("/v1/messages", responses=ERRORS_OF_ANTHROPIC | STREAMS)
    async def messages(body: MessagesRequest, request: Request) -> Response:
        return await answer(service, names, body, request, MessagesReply(body.model or names.name), alive=PING)

    @app.post("/v1/messages/count_tokens", responses=ERRORS_OF_ANTHROPIC)
    async def count_tokens(body: CountRequest) -> Response:
        assert_named(names, body.model)
        (asked,) = body.asked(service)
        ids = await service.prepared(lambda engine: tokens_of(engine.generator, asked))
        return Reply({"input_tokens": len(ids)})


def _model(service: Service, name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": service.began, "owned_by": "moe-local"}


class Counted:
    """Counts replies by path and status, paths that are not `known` as one."""

    def __init__(self, app: ASGIApp, metrics: Metrics, known: Sequence[str]) -> None:
        self._app = app
        self._metrics = metrics
        self._known = frozenset(known)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        path = path if path in self._known else "other"

        async def count(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._metrics.replied(path, message["status"])
            await send(message)

        await self._app(scope, receive, count if scope["type"] == "http" else send)


async def answer(
    service: Service, names: Names, body: Asking, request: Request, reply: Replying, *, alive: str = HERE
) -> Response:
    """Answers a request, at once or as a stream, in which `alive` is said in long pauses. Raises RefusedError."""
    assert_named(names, body.model)
    asked = body.asked(service)
    if not body.stream:
        return Reply(await unless_gone(request, _whole(service, asked, reply)))
    held = answering(service, asked)
    answers = await unless_gone(request, held.__aenter__())  # refused before anything is sent

    async def leave() -> None:
        await held.__aexit__(None, None, None)

    return EventStream(reply.stream(answers), leave, service.settings.seconds + service.settings.grace, alive)


async def _whole(service: Service, asked: Sequence[Asked], reply: Replying) -> dict[str, Any]:
    async with answering(service, asked) as answers:
        return await reply.whole(answers)


async def _on_refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedError)
    return refusal(error, request.url.path)


async def _on_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return refusal(of_validation(error.errors()), request.url.path)


async def _on_ours(request: Request, error: Exception) -> Response:
    assert isinstance(error, MoeLocalError)
    return refusal(refused(error), request.url.path)


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kind = NOT_FOUND if error.status_code == 404 else "invalid_request_error"
    made = RefusedError(error.status_code, str(error.detail), kind=kind)
    reply = refusal(made, request.url.path)
    for name, value in (error.headers or {}).items():
        reply.headers[name] = value
    return reply


async def _on_gone(request: Request, error: Exception) -> Response:
    return Response(status_code=_CLOSED)


async def _on_any(request: Request, error: Exception) -> Response:
    """Nothing about this machine is in what is said: uvicorn's log has the rest."""
    return refusal(RefusedError(500, "an internal error", kind=SERVER, code="internal_error"), request.url.path)


_HANDLERS: dict[type[Exception], Callable[[Request, Exception], Awaitable[Response]]] = {
    RefusedError: _on_refused,
    RequestValidationError: _on_invalid,
    MoeLocalError: _on_ours,
    HTTPException: _on_http,
    ClientGoneError: _on_gone,
    Exception: _on_any,
}
