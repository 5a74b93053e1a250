"""What a terminal shows until a command's slow imports are done. Imports nothing slow itself."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.cells import cell_len, set_cell_size

from .output import visible


@contextmanager
def announced(text: str) -> Iterator[None]:
    """Shows one line at a terminal while the block runs, and takes it away at its end."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield
        return
    width = shutil.get_terminal_size().columns - 1
    shown = visible(text.replace("\n", " "))
    _put(set_cell_size(shown, min(cell_len(shown), width)))
    try:
        yield
    finally:
        _put("\r" + " " * width + "\r")


def _put(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()
