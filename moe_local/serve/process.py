"""A server as a process: its socket, its signals, how many connections it takes."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from time import monotonic
from types import FrameType
from typing import Any

import uvicorn

from moe_local.errors import MoeLocalError
from moe_local.serve.settings import ServeSettings

_SPARE_FILES = 128  # descriptors for everything but connections
_WANTED_FILES = 8192
_BACKLOG = 1024
_UNREAD = 60.0  # seconds after which a client that does not read what it is sent has gone
_LOOK = 0.1  # seconds from one look whether it is to be cut off to the next
_LAST_WORDS = 5.0  # seconds in which clients are told that it was


def listen(settings: ServeSettings) -> socket.socket:
    """A socket that the server will answer on. Raises MoeLocalError where it cannot be had."""
    host, port = settings.host.strip("[]"), settings.port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = None
    try:
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if sys.platform == "linux":  # connections have it from the socket that they came by
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(_UNREAD * 1000))
        sock.bind((host, port))
        sock.listen(_BACKLOG)  # from now on no other server can have it
    except (OSError, OverflowError, ValueError) as error:  # ValueError: a name that no host can have
        if sock is not None:
            sock.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise MoeLocalError(
            f"cannot listen at {host} port {port} ({reason})", remedy="--port 0 takes a free one"
        ) from error
    sock.set_inheritable(True)
    return sock


def url_of(sock: socket.socket) -> str:
    """By which a client on this machine reaches the server."""
    host, port = sock.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Server(uvicorn.Server):
    """uvicorn's server. The first SIGINT or SIGTERM ends it after the answers under way, a second one cuts them off.

    `on_signal` is called at once, `on_cut` when no answer is waited for any more; what answers is to end them then.
    """

    def __init__(
        self, app: Any, settings: ServeSettings, on_signal: Callable[[], None], on_cut: Callable[[], None]
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                lifespan="off",
                access_log=False,
                log_level="warning",
                log_config=None,
                server_header=False,
                date_header=False,
                proxy_headers=False,
                ws="none",
                backlog=_BACKLOG,
                limit_concurrency=_most_connections(),
            )
        )
        self._on_signal = on_signal
        self._on_cut = on_cut
        self._grace = settings.grace
        self._signals = 0

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Waits for the answers under way, as long as it may."""
        cutting = asyncio.ensure_future(self._cut_off())
        try:
            await super().shutdown(sockets)
        finally:
            cutting.cancel()

    async def _cut_off(self) -> None:
        until = monotonic() + self._grace
        while self._signals < 2 and monotonic() < until:
            await asyncio.sleep(_LOOK)
        self._on_cut()
        await asyncio.sleep(_LAST_WORDS)
        for connection in tuple(self.server_state.connections):
            connection.transport.abort()  # who has not read to here does not

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        former = {number: signal.signal(number, self._end) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    def _end(self, number: int, frame: FrameType | None) -> None:
        self._on_signal()
        self._signals += 1
        self.force_exit = self._signals > 2
        self.should_exit = True


def _most_connections() -> int:
    """How many may be open at once: what the system lets this process have, as far as it can be had."""
    try:
        import resource
    except ImportError:  # Windows, which has no such limit
        return _WANTED_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _WANTED_FILES if hard == resource.RLIM_INFINITY else min(_WANTED_FILES, hard)
    if 0 <= soft < wanted:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return max(16, soft - _SPARE_FILES) if soft >= 0 else _WANTED_FILES
