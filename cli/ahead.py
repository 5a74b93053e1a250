"""A chat's first message, typed while its model is being loaded."""

from __future__ import annotations

import _thread
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import TYPE_CHECKING, Protocol

import typer

from .chat_commands import NAMES
from .interrupts import raising
from .lines import LEAVES, Lines, PlainLines
from .load import Bars, Report, Shown
from .loading import clear_line, show_line
from .output import echo
from .typed import Command

if TYPE_CHECKING:
    from .prompt import TypedLines


class Ahead(Lines, Shown, Protocol):
    """What a chat reads, and where it is shown how far loading is till then."""

    def ready(self) -> None:
        """The model is loaded."""


@contextmanager
def typed_ahead(lines: PlainLines | TypedLines, model: str) -> Iterator[Ahead]:
    """At a terminal the prompt is there from now on. Who leaves it before all is `ready` ends the block."""
    if isinstance(lines, PlainLines):
        yield _Afterwards(lines)
        return
    typing = _Typing(lines, f"loading {model}")
    typing.begin()
    try:
        with raising(in_imports=True):  # the terminal is to be left as it was
            yield typing
    except BaseException as error:
        if typing.left is not None:
            raise typing.left from error
        raise
    finally:
        typing.end()


class _Afterwards(Bars):
    """Nothing is read before the model is loaded."""

    def __init__(self, lines: Lines) -> None:
        self.next, self.edit = lines.next, lines.edit

    def ready(self) -> None:
        pass


class _Typing:
    """A thread that reads the first message. The main one loads: torch keeps some of its settings by thread."""

    def __init__(self, lines: TypedLines, loading: str) -> None:
        self.left: BaseException | None = None  # of who left before the model was loaded
        self._lines = lines
        self._loading = loading
        self._first: SimpleQueue[Command | str | Exception | None] = SimpleQueue()
        self._asked = False  # for the first message, by the chat
        self._typing = True  # it is not there yet
        self._over = False  # loading is, however it ended
        self._lock = threading.RLock()  # of what is shown, and of the two above
        self._begun = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)

    def begin(self) -> None:
        self._lines.below(f"{self._loading} ...")
        self._thread.start()
        self._begun.wait()

    def _read(self) -> None:
        first: Command | str | Exception | None = ""
        try:
            while first == "":
                first = self._lines.read(self._begun.set)
            if isinstance(first, Command) and NAMES.get(first.name) is NAMES["exit"]:
                raise EOFError
        except (EOFError, KeyboardInterrupt) as error:
            first = self._leave(error)
        except Exception as error:
            first = error
        self._begun.set()
        self._show(f"{self._loading} ...", typing=False)
        self._first.put(first)

    def _leave(self, how: EOFError | KeyboardInterrupt) -> Command | str | None:
        """Ends what the main thread is at, if it still loads; else Ctrl-C is what it always is at a prompt."""
        ended = isinstance(how, EOFError)
        with self._lock:
            if not self._over:
                self.left = typer.Exit(0) if ended else how
                _thread.interrupt_main()
                return None
        if ended:
            return None
        echo(LEAVES)
        return self._lines.next()

    def _show(self, text: str, *, typing: bool = True) -> None:
        """Below the prompt; and once the message is there, in a line of its own."""
        with self._lock:
            self._typing = self._typing and typing
            if self._over or self.left is not None:
                return
            if self._typing:
                self._lines.below(text)
            else:
                show_line(text)

    # For who loads.

    @contextmanager
    def progress(self) -> Iterator[Report]:
        yield lambda stage, fraction: self._show(f"{self._loading}: {stage} {fraction:.0%}")

    @contextmanager
    def aside(self) -> Iterator[None]:
        """What is written in the block is above the prompt."""
        with self._lock:
            if not self._typing:
                clear_line()
            with self._lines.aside():
                yield

    def ready(self) -> None:
        with self._lock:
            self._lines.below(None)
            if not self._typing:
                clear_line()
            self._over = True
        if self.left is not None:
            raise KeyboardInterrupt

    def next(self) -> Command | str | None:
        if self._asked:
            return self._lines.next()
        while True:
            try:
                first = self._first.get()
            except KeyboardInterrupt:
                self._lines.strike()
            else:
                self._asked = True
                break
        self._thread.join()
        if isinstance(first, Exception):
            raise first
        return first

    def edit(self, text: str) -> None:
        self._lines.edit(text)

    def end(self) -> None:
        """Takes the prompt away if it is there."""
        with self._lock:
            self._over = True
        while self._thread.is_alive():
            self._lines.end()
            self._thread.join(0.05)
