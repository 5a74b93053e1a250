"""Everything that commands print goes through here, so that no text can do more than be read.

Text comes from models, file names, templates and manifests that strangers wrote. On a terminal, and on stderr
wherever that leads, control characters are shown and not obeyed. A character that the stream's encoding lacks is
replaced. What is piped out of stdout is otherwise as it is.
"""

from __future__ import annotations

import codecs
import io
import json
import os
import re
import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import IO, Any, TextIO

import typer
from rich.console import Console as RichConsole
from rich.console import ConsoleOptions, RenderableType
from rich.segment import Segment

from moe_local.errors import StorageError

_REPLACING = "moe_local.replacing"
# C0 but tab and newline, DEL, C1; what turns the direction of writing; bytes of names that are no text.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    """The text with control characters shown, like `\\x1b`; returns before line ends are left out."""
    return _CONTROLS.sub(_shown, text.replace("\r\n", "\n"))


def _shown(match: re.Match[str]) -> str:
    code = ord(match[0])
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8, as Python smuggles it
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def prepare_streams() -> None:
    """From here on nothing that is written fails because stdout's encoding lacks a character, or its reader left."""
    codecs.register_error(_REPLACING, _replace)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout = sys.__stdout__ = _Stdout.of(sys.stdout)  # type: ignore[misc]  # one owner of the buffer
    if sys.stderr is None:  # closed by whoever started us: libraries do not expect that
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123 - for good
    elif isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr.reconfigure(errors="backslashreplace")


class _Stdout(io.TextIOWrapper):
    """stdout whose reader may go away, which ends the command in peace: `moe-local ... | head`."""

    @classmethod
    def of(cls, stream: io.TextIOWrapper) -> _Stdout:
        encoding, lines = stream.encoding, stream.line_buffering
        newline = None if sys.platform == "win32" else "\n"
        return cls(stream.detach(), encoding, _REPLACING, newline, lines)

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as error:
            raise _ended(self, error) from error

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            raise _ended(self, error) from error


def _ended(stdout: TextIO, error: OSError) -> Exception:
    """What ends a command that cannot write. What stdout still holds then goes nowhere, without another error."""
    forget(stdout)
    if isinstance(error, BrokenPipeError):
        return typer.Exit(0)
    return StorageError(f"stdout cannot be written: {error.strerror}", remedy="free some space, or write elsewhere")


def forget(stream: TextIO) -> None:
    """Sends what a stream holds and gets to nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    with suppress(OSError, ValueError):  # a stream without a file
        os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _replace(error: UnicodeError) -> tuple[str | bytes, int]:
    """Question marks; bytes of a file's name, smuggled as half surrogates, become themselves again."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    character = error.object[error.start]
    if "\udc80" <= character <= "\udcff":
        return bytes([ord(character) - 0xDC00]), error.start + 1
    return "?", error.start + 1


def echo(text: object = "", *, err: bool = False) -> None:
    """A line on stdout or stderr."""
    stream = sys.stderr if err else sys.stdout
    line = f"{text}\n"
    _put(stream, visible(line) if err or _is_terminal(stream) else line)


def echo_json(value: object, *, err: bool = False, indent: int | None = None) -> None:
    """One JSON object, valid whatever the stream can show."""
    stream = sys.stderr if err else sys.stdout
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    if err or _is_terminal(stream) or not _is_utf8(stream) or re.search("[\ud800-\udfff]", text):
        text = json.dumps(value, indent=indent)
    _put(stream, text + "\n")


def write(piece: str) -> None:
    """A piece of the model's text to stdout, at once."""
    # Some models write a return before a newline, which may come with the next piece.
    _put(sys.stdout, visible(piece.replace("\r", "")) if _is_terminal(sys.stdout) else piece)


def binary_stdout() -> IO[bytes] | None:
    """Where UTF-8 lines go: stdout as it is, or shown at a terminal; None where there is no stdout."""
    if sys.stdout is None:
        return None
    return _Shown(sys.stdout) if _is_terminal(sys.stdout) else sys.stdout.buffer


class _Shown(io.BytesIO):
    """Bytes of UTF-8 text that are shown at a terminal, line by line."""

    def __init__(self, terminal: TextIO) -> None:
        super().__init__()
        self._terminal = terminal

    def write(self, content: Any) -> int:
        _put(self._terminal, visible(bytes(content).decode(errors="replace")))
        return len(content)


def _put(stream: TextIO | None, text: str) -> None:
    if stream is not None:  # None where whoever started us closed it
        stream.write(text)
        stream.flush()


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty()


def _is_utf8(stream: TextIO | None) -> bool:
    try:
        return codecs.lookup(getattr(stream, "encoding", None) or "utf-8").name == "utf-8"
    except LookupError:
        return False


class Console(RichConsole):
    """rich's, which obeys its own control characters only."""

    def __init__(self, *, stderr: bool = False, **options: Any) -> None:
        super().__init__(stderr=stderr, **{"highlight": False, "emoji": False, **options})

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if segment.control or not _CONTROLS.search(segment.text):
                yield segment
            else:
                yield Segment(visible(segment.text), segment.style)


stderr = Console(stderr=True)
