"""Where a chat's messages and commands come from: line by line from a pipe, or typed at a terminal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Protocol

from moe_local.errors import MoeLocalError
from moe_local.files import MOST_PROMPT
from moe_local.paths import cache_dir

from .typed import Command, read_line

if TYPE_CHECKING:
    from .prompt import TypedLines

PROMPT = "> "
LEAVES = "(Ctrl-D or /bye leaves)"
_HISTORY = "chat_history"  # in the cache folder


class Lines(Protocol):
    """What a chat reads."""

    def next(self) -> Command | str | None:
        """The next message or command; None at the end of input."""

    def edit(self, text: str) -> None:
        """Has the user change a text in an editor; the next message begins with it. MoeLocalError where it fails."""


class PlainLines:
    """Lines of stdin, each a message or a command."""

    def next(self) -> Command | str | None:
        try:
            line = input(PROMPT) if sys.stdin.isatty() else _piped()
        except EOFError:
            return None
        except UnicodeDecodeError as error:
            raise MoeLocalError(f"what was typed is not {error.encoding} text") from error
        return None if line is None else read_line(line)

    def edit(self, text: str) -> None:
        raise MoeLocalError("an editor needs a terminal", remedy="write the message as a line")


def _piped() -> str | None:
    line = sys.stdin.readline(MOST_PROMPT + 1)
    if len(line) > MOST_PROMPT:
        raise MoeLocalError(f"a line has more than {MOST_PROMPT} characters", remedy="give a shorter one")
    return line or None


def lines_of_user() -> PlainLines | TypedLines:
    """What is typed, where stdin and stdout are a terminal; else plain lines, without importing what edits them."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return PlainLines()
    from .prompt import TypedLines

    return TypedLines(cache_dir() / _HISTORY)
