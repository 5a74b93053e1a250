"""Words of a streamed answer, kept whole at the right edge of a terminal's window."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unicodedata import category

from rich.cells import cell_len

from .output import visible

_TAB = 8
_UNKNOWN = 80  # columns, where a terminal does not tell
_FENCE = re.compile(r"\s*(```+|~~~+)(?!.*`)")
# Categories of Unicode: of what belongs to the sign before it, and of what belongs to the one behind.
_CLOSING = ("Pe", "Pf", "Po", "Lm")
_OPENING = ("Ps", "Pi")
_JOINED = re.compile("\u200d.|.[\U0001f3fb-\U0001f3ff]|[\U0001f1e6-\U0001f1ff]{2}")  # parts of one emoji


class WordWrap:
    """Pieces of a text in, the same text with line breaks between its words out.

    `width` is asked before each word, in columns: the window may change while an answer comes. A word is held back
    until it is whole. Blocks of code, and words longer than a line, are left to the terminal, which breaks them
    without changing what is copied.
    """

    def __init__(self, width: Callable[[], int]) -> None:
        self._width = width
        self._line = ""  # of the text itself, since its last newline
        self._fence = ""  # what began the block of code that this is in
        self._column = 0  # columns written since the last line break, our own ones too
        self._spaces = ""
        self._word = ""

    def feed(self, piece: str) -> str:
        """What of the text so far can be written now."""
        return "".join(map(self._next, piece))

    def end(self) -> str:
        """What was held back; the text is over."""
        return self._place() + self._trailing_spaces()

    def _next(self, character: str) -> str:
        if character == "\n":
            return self._newline()
        self._line += character
        if self._fence:
            return character
        if character in " \t":
            placed = self._place()
            self._spaces += character
            return placed
        placed = self._place() if self._word and self._may_break_before(character) else ""
        self._word += character
        return placed

    def _newline(self) -> str:
        written = self._place() + self._trailing_spaces() + "\n"
        fence = _FENCE.match(self._line)
        if self._fence:
            ends = self._line.strip().startswith(self._fence) and not self._line.strip(" \t`~")
            self._fence = "" if ends else self._fence
        elif fence is not None:
            self._fence = fence[1]
        self._line, self._column = "", 0
        return written

    def _may_break_before(self, character: str) -> bool:
        """Between signs of scripts without spaces, but where punctuation belongs to its neighbour."""
        last = self._word[-1]
        if category(character) in _CLOSING or category(last) in _OPENING or cell_len(character) == 0:
            return False
        return (_is_wide(character) or _is_wide(last)) and not _JOINED.fullmatch(last + character)

    def _place(self) -> str:
        """The word, behind its spaces or on a line of its own."""
        word, self._word = self._word, ""
        if not word:
            return ""
        width, cells = self._width(), cell_len(word)
        written = self._on_row(width)
        if written and written + self._cells_of_spaces() + cells > width:
            self._spaces, self._column = "", cells
            return "\n" + word
        spaces = self._take_spaces()
        self._column += cells
        return spaces + word

    def _on_row(self, width: int) -> int:
        """Columns taken in the row of the window that the cursor is in, the terminal's own line breaks counted."""
        return (self._column - 1) % width + 1 if self._column else 0

    def _cells_of_spaces(self) -> int:
        column = self._column
        for space in self._spaces:
            column += _TAB - column % _TAB if space == "\t" else 1
        return column - self._column

    def _trailing_spaces(self) -> str:
        """The spaces at a line's end, where they do not begin another row."""
        width = self._width()
        spaces = self._take_spaces() if self._on_row(width) + self._cells_of_spaces() <= width else ""
        self._spaces = ""
        return spaces

    def _take_spaces(self) -> str:
        self._column += self._cells_of_spaces()
        spaces, self._spaces = self._spaces, ""
        return spaces


def _is_wide(character: str) -> bool:
    return cell_len(character) > 1


def window_width() -> int:
    """Columns of the terminal on stdout, as wide as it is now."""
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or _UNKNOWN
    except (OSError, ValueError):
        return _UNKNOWN


@contextmanager
def wrapped(write: Callable[[str], None], *, wanted: bool) -> Iterator[Callable[[str], None]]:
    """`write` for pieces of a text, word by word where that is `wanted`; the last word is written at the end."""
    if not wanted:
        yield write
        return
    wrap = WordWrap(window_width)
    try:
        yield lambda piece: write(wrap.feed(visible(piece.replace("\r", ""))))
    finally:
        write(wrap.end())
