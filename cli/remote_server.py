"""Another program that answers: a server of OpenAI's chat completions, ours or another's, over HTTP."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import httpx

from moe_local.errors import MoeLocalError
from moe_local.serve.running import servers
from moe_local.serve.settings import is_loopback

from .failure import UsageError
from .loading import announced
from .session import interruptible

_CONNECTING, _READING = 10.0, 600.0  # seconds
_PATH = "/v1/chat/completions"
_AGAIN = 2  # seconds until the next try, where a server does not say when
_LONGEST_WAIT = 60
_MOST_LINE = 16 << 20  # bytes of an event
_TOLD = 500  # characters of what a server says of an error
_UNAUTHORISED, _BUSY, _NOT_READY = 401, 429, 503


@dataclass(frozen=True)
class _Refusal:
    """A reply that is no answer."""

    status: int
    message: str
    code: str | None
    wait: int  # seconds after which another try makes sense

    @property
    def is_loading(self) -> bool:
        return self.status == _NOT_READY and self.code == "loading"

    @property
    def may_pass(self) -> bool:
        return self.status in (_BUSY, _NOT_READY) and self.code not in ("ending", "failed")


class RemoteServer:
    """A server by its address. What goes wrong with it is a MoeLocalError that says what to do."""

    def __init__(self, url: str, api_key: str | None) -> None:
        self.url = url
        self._headers = {} if api_key is None else {"Authorization": f"Bearer {_checked(api_key)}"}

    def first_model(self) -> str:
        """The name of the first model that it lists."""
        with self._client() as client, self._in_words():
            reply = client.get("/v1/models")
            reply.read()
            if reply.status_code != 200:
                raise self._error(_refusal(reply))
            return str(reply.json()["data"][0]["id"])

    def events(self, body: Mapping[str, Any]) -> Generator[dict[str, Any]]:
        """The events of a streamed chat completion.

        While it loads its model it is waited for; where it is busy it is asked once more. Closing the iterator
        closes the connection, which ends the answer. Ctrl-C does so too, and then raises KeyboardInterrupt.
        """
        tries = 0
        while True:
            wire = _Wire()
            with (
                interruptible(wire.end) as struck,
                _as_interrupt(struck),
                self._client() as client,
                self._in_words(),
                client.stream("POST", _PATH, json=dict(body), extensions={"trace": wire.watch}) as reply,
            ):
                if reply.status_code == 200:
                    for event in _events(reply):
                        if struck.is_set():
                            return
                        yield event
                    return
                reply.read()
                refusal = _refusal(reply)
            tries += not refusal.is_loading
            if tries > 1 or not refusal.may_pass:
                raise self._error(refusal)
            with announced(f"{refusal.message}; waiting ..."):
                time.sleep(refusal.wait)

    def _client(self) -> httpx.Client:
        url = httpx.URL(self.url)
        timeout = httpx.Timeout(_READING, connect=_CONNECTING)
        # A proxy is for other machines: it would not find this one.
        return httpx.Client(base_url=url, headers=self._headers, timeout=timeout, trust_env=not is_loopback(url.host))

    @contextmanager
    def _in_words(self) -> Iterator[None]:
        """Errors of the connection, and of what it brings, as ours."""
        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise MoeLocalError(
                f"no server answers at {self.url} ({error})",
                remedy="`moe-local ps` lists those that run here, `moe-local serve` begins one",
            ) from error
        except httpx.HTTPError as error:
            said = str(error) or type(error).__name__
            raise MoeLocalError(f"the server at {self.url} went away ({said})", remedy="try again") from error
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise MoeLocalError(f"what {self.url} sends is no chat completion", remedy="check the address") from error

    def _error(self, refusal: _Refusal) -> MoeLocalError:
        if refusal.status == _UNAUTHORISED:
            return MoeLocalError(
                f"{self.url} wants an API key, and not this one" if self._headers else f"{self.url} wants an API key",
                remedy="give it with --api-key, or as MOE_LOCAL_API_KEY",
            )
        if refusal.code == "context_length_exceeded":
            remedy = "/clear forgets the conversation and /undo its last exchange"
            return MoeLocalError(f"the context is full: {refusal.message}", remedy=remedy)
        told = f"the server refused ({refusal.status}): {refusal.message}"
        return MoeLocalError(told, remedy="try again later" if refusal.may_pass else None)


class _Wire:
    """The connection of a request, to be ended at Ctrl-C.

    An exception at any instruction of the library that speaks HTTP could leave its locks held, and the next one that
    waits for them would wait for ever.
    """

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._ended = False

    def watch(self, name: str, info: Mapping[str, Any]) -> None:
        """Told of what the library does: https://www.encode.io/httpcore/extensions/#trace"""
        if name.endswith((".connect_tcp.complete", ".start_tls.complete")):
            self._socket = info["return_value"].get_extra_info("socket")
            if self._ended:
                self.end()

    def end(self) -> None:
        """Who reads from it comes to its end."""
        self._ended = True
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)


@contextmanager
def _as_interrupt(struck: threading.Event) -> Iterator[None]:
    """Once it is struck, whatever comes of that is a KeyboardInterrupt."""
    try:
        yield
    except Exception:
        if not struck.is_set():
            raise
    if struck.is_set():
        raise KeyboardInterrupt


def address(url: str) -> str:
    """A server's address as it is asked at, without /v1; the only server that runs here for "".

    Raises UsageError for what is no address, and where it is not clear which server is meant.
    """
    if not url:
        return _only_one()
    whole = (url if "://" in url else f"http://{url}").rstrip("/").removesuffix("/v1")
    try:
        parsed = httpx.URL(whole)
    except (httpx.InvalidURL, ValueError) as error:
        raise UsageError(f"{url} is no address ({error})", remedy="write http://127.0.0.1:8000") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise UsageError(f"{url} is no address", remedy="write http://127.0.0.1:8000")
    return whole


def _only_one() -> str:
    found = servers()
    if len(found) == 1:
        return found[0].url
    why = "no server runs here" if not found else f"{len(found)} servers run here"
    raise UsageError(why, remedy="name one by its URL, as `moe-local ps` lists them; `moe-local serve` begins one")


def _checked(api_key: str) -> str:
    if not (api_key.isascii() and api_key.isprintable() and api_key.strip()):
        raise UsageError("--api-key is empty or has signs that no key has", remedy="give the server's key")
    return api_key.strip()


def _refusal(reply: httpx.Response) -> _Refusal:
    """What a reply says of why it is no answer, in OpenAI's shape or another."""
    try:
        told = reply.json()["error"]
        message, code = str(told["message"]), told.get("code")
    except (ValueError, LookupError, TypeError, AttributeError):
        message, code = reply.text.strip() or reply.reason_phrase, None
    return _Refusal(reply.status_code, message[:_TOLD], code if isinstance(code, str) else None, _wait(reply))


def _wait(reply: httpx.Response) -> int:
    said = reply.headers.get("Retry-After", "")
    return min(_LONGEST_WAIT, int(said)) if said.isascii() and said.isdigit() else _AGAIN


def _events(reply: httpx.Response) -> Iterator[dict[str, Any]]:
    """Server-sent events, up to the one that says that there are no more."""
    for line in _lines(reply):
        if not line.startswith(b"data:"):
            continue
        data = line[5:].strip()
        if data == b"[DONE]":
            return
        found = json.loads(data)
        if "error" in found:
            raise MoeLocalError(f"the server ended the answer: {str(found['error']['message'])[:_TOLD]}")
        yield found
    raise MoeLocalError("the server went away in the middle of its answer", remedy="try again")


def _lines(reply: httpx.Response) -> Iterator[bytes]:
    """Not `iter_lines`, to which signs inside a JSON text end a line as well."""
    begun = b""
    for piece in reply.iter_bytes():
        *whole, begun = (begun + piece).split(b"\n")
        yield from whole
        if len(begun) > _MOST_LINE:
            raise ValueError("an event is too long")
    yield begun
