"""Ctrl-C before a command begins and after it ended: the process ends at once, and quietly. Imports nothing slow."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED = 130  # exit code, as shells have it
_struck: list[bool] = []


def end_quietly() -> None:
    """From here on Ctrl-C ends the process. Does nothing where it is ignored, as in a shell's background job."""
    if not ignored():
        signal.signal(signal.SIGINT, _end)


def ignored() -> bool:
    """Whether whoever started the process wants it to go on at Ctrl-C."""
    return signal.getsignal(signal.SIGINT) == signal.SIG_IGN


@contextmanager
def raising() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt in the block, where `end_quietly` is in force around it."""
    if signal.getsignal(signal.SIGINT) is not _end:
        yield
        return
    signal.signal(signal.SIGINT, _raise)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, _end)


def was_interrupt(error: Exception) -> bool:
    """Whether an error is what somebody made of a KeyboardInterrupt, as libraries do that are being imported."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, KeyboardInterrupt):
            return True
        cause = cause.__cause__ or cause.__context__
    return isinstance(error, ImportError) and bool(_struck)


def _raise(number: int, frame: FrameType | None) -> None:
    _struck.append(True)
    raise KeyboardInterrupt


def _end(number: int, frame: FrameType | None) -> None:
    # No exception: it could come out of an import that is half done, or where nobody catches it.
    os.write(2, b"error: interrupted\n")
    os._exit(INTERRUPTED)
