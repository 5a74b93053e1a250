"""Messages and commands typed at a terminal: several lines, history, completion with Tab."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.application import in_terminal
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import has_focus
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.shortcuts import CompleteStyle
from prompt_toolkit.styles import Style

from moe_local.files import atomic_write

from .chat_commands import FILES, MODELS, NAMES
from .completion import complete_model
from .editor import edited
from .lines import LEAVES, PROMPT
from .output import echo
from .typed import Command, goes_on, is_open, read_typed

_CONTINUED = "... "
_MOST_HISTORY = 1 << 20  # bytes
_A_MOMENT = 0.05  # seconds


class TypedLines:
    """What is typed or pasted, up to the Return that ends it: triple quotes and a backslash at the end go on."""

    def __init__(self, history: Path) -> None:
        self._session: PromptSession[str] = PromptSession(
            PROMPT,
            multiline=True,
            prompt_continuation=_CONTINUED,
            key_bindings=_bindings(),
            completer=_Completer(),
            complete_style=CompleteStyle.READLINE_LIKE,
            history=_opened(history),
            style=Style.from_dict({"bottom-toolbar": "noreverse"}),
            enable_suspend=True,
            enable_open_in_editor=True,
        )
        self._begun = ""

    def edit(self, text: str) -> None:
        self._begun = edited(text)

    def next(self) -> Command | str | None:
        while True:
            try:
                return self.read()
            except KeyboardInterrupt:
                echo(LEAVES)
            except EOFError:
                return None

    def read(self, shown: Callable[[], None] | None = None) -> Command | str:
        """One message or command; `shown` is called once the prompt is there.

        Raises EOFError at Ctrl-D and KeyboardInterrupt at Ctrl-C, on an empty line.
        """
        begun, self._begun = self._begun, ""
        return read_typed(self._session.prompt(default=begun, pre_run=shown), NAMES)

    # What follows is for another thread than the one that reads.

    def below(self, text: str | None) -> None:
        """A line below the prompt from now on, or none."""
        self._session.bottom_toolbar = text
        self._session.app.invalidate()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """The prompt, and what is typed there so far, is off the terminal in the block."""
        app, free, written = self._session.app, threading.Event(), threading.Event()

        async def hide() -> None:
            async with in_terminal():
                free.set()
                await asyncio.to_thread(written.wait)

        if self._does(lambda: app.create_background_task(hide())):
            while not free.wait(_A_MOMENT) and app.loop is not None:  # it may end before that is done
                pass
        try:
            yield
        finally:
            written.set()

    def strike(self) -> None:
        """Does what Ctrl-C does."""
        self._does(self._session.app.key_processor.send_sigint)

    def end(self) -> None:
        """Takes the prompt away."""
        app = self._session.app
        self._does(lambda: None if app.is_done else app.exit(exception=EOFError))

    def _does(self, what: Callable[[], object]) -> bool:
        """Has it done by the thread that reads; False where none does."""
        loop = self._session.app.loop
        if loop is None:
            return False
        with suppress(RuntimeError):  # it has just ended
            loop.call_soon_threadsafe(what)
            return True
        return False


def _bindings() -> KeyBindings:
    bindings = KeyBindings()
    typing = has_focus(DEFAULT_BUFFER)

    @bindings.add("enter", filter=typing)
    def end_or_go_on(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if is_open(buffer.text):
            buffer.newline(copy_margin=False)
        elif buffer.document.is_cursor_at_the_end and goes_on(buffer.text):
            buffer.delete_before_cursor()
            buffer.newline(copy_margin=False)
        else:
            buffer.validate_and_handle()

    @bindings.add("c-c", filter=typing)
    @bindings.add("<sigint>")
    def clear(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt)

    return bindings


class _Completer(Completer):
    """The names of commands, and what follows them: names of files or models, or one of a few words."""

    def __init__(self) -> None:
        self._files = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        name, space, argument = document.text_before_cursor.removeprefix("/").partition(" ")
        if not document.text.startswith("/") or "\n" in document.text:
            return
        if not space:
            yield from _beginning(name, [each + " " * bool(NAMES[each].argument) for each in sorted(NAMES)])
        elif name in NAMES and NAMES[name].completes in (FILES, MODELS):
            if NAMES[name].completes == MODELS:
                yield from _beginning(argument, complete_model(argument))
            for found in self._files.get_completions(Document(argument), complete_event):
                folder = "/" if found.display_text.endswith("/") else ""
                yield Completion(found.text + folder, found.start_position, found.display)
        elif name in NAMES:
            yield from _beginning(argument, NAMES[name].completes)


def _beginning(typed: str, words: Iterable[str]) -> Iterable[Completion]:
    return (Completion(word, -len(typed)) for word in words if word.startswith(typed))


def _opened(file: Path) -> History:
    """What was typed in earlier chats; kept for this one alone where the file cannot be written."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        _shorten(file)
        with file.open("ab"):
            return _History(file)
    except OSError:
        return InMemoryHistory()


def _shorten(file: Path) -> None:
    """Leaves a history that has grown too large its newer half."""
    if file.exists() and file.stat().st_size > _MOST_HISTORY:
        kept = file.read_bytes()[-_MOST_HISTORY // 2 :]
        with atomic_write(file) as stream:
            stream.write(kept[kept.find(b"\n#") + 1 :])


class _History(FileHistory):
    """A disk that fails ends no chat."""

    def store_string(self, string: str) -> None:
        with suppress(OSError):
            super().store_string(string)
