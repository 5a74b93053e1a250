"""A time and an amount of memory for code that a checkpoint brings: chat templates are programs."""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from moe_local.errors import MoeLocalError

SECONDS = 10.0
GROWTH = 512 << 20  # bytes


class _OutOfTime(BaseException):
    """Raised inside what runs too long; no template can catch it."""


@contextmanager
def bounded(what: str, seconds: float = SECONDS, growth: int = GROWTH) -> Iterator[None]:
    """Ends Python code inside that runs for longer or, on Linux, takes more memory: MoeLocalError, naming `what`."""
    with _less_memory(growth):
        watch = _Watch(seconds)
        try:
            try:
                yield
            finally:
                watch.end()
        except _OutOfTime:
            raise MoeLocalError(f"{what} does not end: it was stopped after {seconds:.0f} s") from None
        except MemoryError:
            raise MoeLocalError(f"{what} makes more text than fits into {growth >> 20} MiB") from None


class _Watch:
    """Raises `_OutOfTime` in the thread that made it, once its time is over, unless it ended before."""

    def __init__(self, seconds: float) -> None:
        self._thread = threading.get_ident()
        self._lock = threading.Lock()
        self._ended = False
        self._timer = threading.Timer(seconds, self._strike)
        self._timer.daemon = True
        self._timer.start()

    def _strike(self) -> None:
        with self._lock:
            if not self._ended:
                self._ended = True
                thread, error = ctypes.c_ulong(self._thread), ctypes.py_object(_OutOfTime)
                ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, error)

    def end(self) -> None:
        with self._lock:
            self._ended = True
        self._timer.cancel()


@contextmanager
def _less_memory(growth: int) -> Iterator[None]:
    """Leaves the process `growth` bytes of address space to take: what asks for more gets a MemoryError at once."""
    if sys.platform != "linux":
        yield
        return
    import resource

    former, most = resource.getrlimit(resource.RLIMIT_AS)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = taken + growth
    if former != resource.RLIM_INFINITY:
        limit = min(limit, former)
    resource.setrlimit(resource.RLIMIT_AS, (limit, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (former, most))
