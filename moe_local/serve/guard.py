"""Who may ask: the key, the name by which the server is called, the page that asks, the size of what is sent.

A browser lets any page send requests to this machine. A page of another origin is refused (it says so in `Origin`),
and so is one whose name was made to point here (DNS rebinding: it says so in `Host`).
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from moe_local.serve.errors import AUTHENTICATION, PERMISSION, RefusedError
from moe_local.serve.replies import refusal
from moe_local.serve.settings import ServeSettings, is_loopback
from moe_local.units import format_size

OPEN = ("/health", "/", "/favicon.ico")  # without a key
OPEN_BELOW = "/page/"


class Guard:
    """Lets through what may be asked; answers the rest itself."""

    def __init__(self, app: ASGIApp, settings: ServeSettings) -> None:
        self._app = app
        self._settings = settings
        self._key = None if settings.api_key is None else _digest(settings.api_key.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            self._assert_allowed(scope)
            limited = _Limited(receive, self._settings.body)
            limited.assert_announced(_header(scope, b"content-length"))
        except RefusedError as error:
            await refusal(error, scope["path"])(scope, receive, send)
            return
        await self._app(scope, limited, send)

    def _assert_allowed(self, scope: Scope) -> None:
        host, origin = _text(_header(scope, b"host")), _text(_header(scope, b"origin"))
        if not self._is_ours(host):
            raise RefusedError(
                403,
                "the server does not go by this name; --allow-host adds one",
                kind=PERMISSION,
                code="unknown_host",
            )
        if origin and not self._may_ask(origin, host):
            raise RefusedError(
                403,
                "pages of this origin may not ask; --allow-origin adds one",
                kind=PERMISSION,
                code="unknown_origin",
            )
        path = scope["path"]
        if path not in OPEN and not path.startswith(OPEN_BELOW) and not self._has_key(scope):
            raise RefusedError(401, "the API key is missing or wrong", kind=AUTHENTICATION, code="invalid_api_key")

    def _is_ours(self, host: str) -> bool:
        """Whether a Host header names this server; where others may reach it, by whatever name, the key guards it."""
        name = _name_of(host)
        if name is None:
            return False
        if not self._settings.is_local and self._key is not None:
            return True
        known = {self._settings.host.strip("[]").lower(), *(each.lower() for each in self._settings.hosts)}
        return name in known or is_loopback(name)

    def _may_ask(self, origin: str, host: str) -> bool:
        return origin in self._settings.origins or _netloc(origin) == host.lower()

    def _has_key(self, scope: Scope) -> bool:
        """Compared in a time that tells nothing of the key."""
        if self._key is None or scope["method"] == "OPTIONS":
            return True
        given = _header(scope, b"x-api-key")
        scheme, _, bearer = _header(scope, b"authorization").partition(b" ")
        candidates = [given, bearer.strip() if scheme.lower() == b"bearer" else b""]
        matches = [hmac.compare_digest(_digest(each), self._key) for each in candidates]  # all of them, always
        return any(matches)


class _Limited:
    """Hands on a request's body, up to a size."""

    def __init__(self, receive: Receive, most: int) -> None:
        self._receive = receive
        self._most = most
        self._seen = 0

    def assert_announced(self, length: bytes) -> None:
        if length.isdigit() and int(length[:20]) > self._most:
            raise self._too_large()

    async def __call__(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self._seen += len(message.get("body", b""))
            if self._seen > self._most:
                raise HTTPException(413, self._too_large().message)  # what FastAPI hands on while it reads
        return message

    def _too_large(self) -> RefusedError:
        return RefusedError(413, f"a request has {format_size(self._most)} at most", code="request_too_large")


def _digest(secret: bytes) -> bytes:
    return hashlib.sha256(secret).digest()


def _header(scope: Scope, name: bytes) -> bytes:
    headers: Iterable[tuple[bytes, bytes]] = scope["headers"]
    return next((value for key, value in headers if key == name), b"")


def _text(header: bytes) -> str:
    return header.decode("latin-1").strip()


def _name_of(host: str) -> str | None:
    """The name in a Host header, without port and brackets; None where it is none."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""
