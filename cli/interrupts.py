"""Ctrl-C outside of a command, and where a command imports: the process ends at once, and quietly.

Imports nothing slow.
"""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED = 130  # exit code, as shells have it
_IMPORTS = "<frozen importlib._bootstrap>"
_LINE_CLEARED = b"\r\x1b[2K\x1b[?25h"  # of a progress bar, whose cursor is hidden
_SOON = 0.01  # seconds


def end_quietly() -> None:
    """From here on Ctrl-C ends the process. Does nothing where it is ignored, as in a shell's background job."""
    if not ignored():
        signal.signal(signal.SIGINT, _end)


def ignored() -> bool:
    """Whether whoever started the process wants it to go on at Ctrl-C."""
    return signal.getsignal(signal.SIGINT) == signal.SIG_IGN


@contextmanager
def raising(*, in_imports: bool = False) -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt in the block, where `end_quietly` is in force around it.

    Not while something is imported: libraries catch whatever comes out of the imports that they try, and go on. The
    process ends there at once, unless it is to raise `in_imports` too.
    """
    former = signal.getsignal(signal.SIGINT)
    if former not in (_end, _raise):
        yield
        return
    former_hook, sys.unraisablehook = sys.unraisablehook, _raise_again
    signal.signal(signal.SIGINT, signal.default_int_handler if in_imports else _raise)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, former)
        sys.unraisablehook = former_hook


def was_interrupt(error: Exception) -> bool:
    """Whether an error is what somebody made of a KeyboardInterrupt."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, KeyboardInterrupt):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def _raise(number: int, frame: FrameType | None) -> None:
    if _importing(frame):
        _end(number, frame)
    raise KeyboardInterrupt


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == _IMPORTS:
            return True
        frame = frame.f_back
    return False


def _raise_again(lost: sys.UnraisableHookArgs) -> None:
    """A destructor, or another call that nobody waits for, was where Ctrl-C came: it is to come again."""
    if issubclass(lost.exc_type, KeyboardInterrupt):
        threading.Timer(_SOON, _thread.interrupt_main).start()  # from in here it would be lost again
    else:
        sys.__unraisablehook__(lost)


def _end(number: int, frame: FrameType | None) -> None:
    # No exception: it could come out of an import that is half done, or where nobody catches it.
    os.write(2, (_LINE_CLEARED if os.isatty(2) else b"") + b"error: interrupted\n")
    os._exit(INTERRUPTED)
