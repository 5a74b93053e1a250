"""What a terminal shows until a command's slow imports are done. Imports nothing slow itself."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.control import Control
from rich.segment import ControlType

from .output import stderr

_CLEARED = Control(ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2))


@contextmanager
def announced(text: str) -> Iterator[None]:
    """Shows one line at a terminal while the block runs, and takes it away at its end."""
    show_line(text)
    try:
        yield
    finally:
        clear_line()


def show_line(text: str) -> None:
    """Shows this in place of what the line showed."""
    if _at_terminal():
        clear_line()
        stderr.print(text.replace("\n", " "), end="", markup=False, no_wrap=True, overflow="ellipsis")


def clear_line() -> None:
    if _at_terminal():
        stderr.control(_CLEARED)


def _at_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()
