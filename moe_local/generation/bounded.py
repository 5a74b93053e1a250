"""A time and an amount of memory for code that a checkpoint brings: chat templates are programs."""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TypeVar

from moe_local.errors import MoeLocalError

SECONDS = 10.0
GROWTH = 512 << 20  # bytes
T = TypeVar("T")
_one_at_a_time = threading.Lock()  # the bound of memory is the whole process's


class _OutOfTime(BaseException):
    """Raised inside what runs too long; no template can catch it."""


def bounded(what: str, run: Callable[[], T], seconds: float = SECONDS, growth: int = GROWTH) -> T:
    """What Python code gives, ended with MoeLocalError where it runs for longer or, on Linux, takes more memory.

    `what` names it. An interrupt leaves neither bound behind.
    """
    with _one_at_a_time:
        return _bounded(what, run, seconds, growth)


def _bounded(what: str, run: Callable[[], T], seconds: float, growth: int) -> T:
    former = _address_space()
    try:
        _limit(former, growth)
        watch = _Watch(sys._getframe(), seconds)
        try:
            return run()
        finally:
            watch.end()
    except _OutOfTime:
        raise MoeLocalError(f"{what} does not end: it was stopped after {seconds:.0f} s") from None
    except MemoryError:
        raise MoeLocalError(f"{what} makes more text than fits into {growth >> 20} MiB") from None
    finally:
        _limit(former, None)


class _Watch:
    """Raises `_OutOfTime` in the thread that made it, once its time is over, while it still runs inside `frame`."""

    def __init__(self, frame: FrameType, seconds: float) -> None:
        self._frame: FrameType | None = frame
        self._thread = threading.get_ident()
        self._lock = threading.Lock()
        self._ended = False
        self._timer = threading.Timer(seconds, self._strike)
        self._timer.daemon = True
        self._timer.start()

    def _strike(self) -> None:
        with self._lock:
            # An interrupt may have left the block without an end.
            if not self._ended and self._is_inside():
                self._ended = True
                thread, error = ctypes.c_ulong(self._thread), ctypes.py_object(_OutOfTime)
                ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, error)

    def _is_inside(self) -> bool:
        frame = sys._current_frames().get(self._thread)
        while frame is not None and frame is not self._frame:
            frame = frame.f_back
        return frame is not None

    def end(self) -> None:
        with self._lock:
            self._ended = True
        self._timer.cancel()
        self._frame = None  # which has this, and all its callers: a model that they load would stay in memory


def _address_space() -> tuple[int, int]:
    """The process's bounds, soft and hard; (0, 0) where they bind nothing."""
    if sys.platform != "linux":
        return 0, 0
    import resource

    return resource.getrlimit(resource.RLIMIT_AS)


def _limit(former: tuple[int, int], growth: int | None) -> None:
    """Leaves the process `growth` bytes of address space to take: more is a MemoryError at once. None: as before."""
    if sys.platform != "linux":
        return
    import resource

    soft, hard = former
    if growth is not None:
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        soft = taken + growth if soft == resource.RLIM_INFINITY else min(soft, taken + growth)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
