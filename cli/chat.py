"""`moe-local chat`: a conversation at the terminal, or line by line from a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moe_local.errors import CheckpointError, MoeLocalError, StorageError
from moe_local.files import MOST_PROMPT
from moe_local.paths import cache_dir

from . import options as opt
from .output import echo, echo_json

if TYPE_CHECKING:
    from moe_local.engine import Engine
    from moe_local.generation.chat import ChatSession, Watching
    from moe_local.generation.generate import Generation

HELP = """\
/help               this
/stats              what the expert cache did so far, and memory
/system [TEXT]      show, or replace, the system message
/reset              forget the conversation
/save FILE          write the conversation as JSON
/load FILE          take up a saved conversation
/regenerate         answer the last message again
/think [LEVEL]      how much to reason: on, off, low, medium, high
/fold               show only that the model reasons, or what
/reasoning          what it reasoned before its last answer
/exit               leave (also Ctrl-D)
Ctrl-C stops an answer and not the chat. Anything else is said to the model."""


def chat(
    model: opt.Model = None,
    system: Annotated[str | None, typer.Option(help="A system message to begin with.")] = None,
    fold: Annotated[
        bool, typer.Option("--fold", help="Show that the model reasons, and not what; /fold changes it.")
    ] = False,
    pack: opt.Pack = True,
    *,
    flags: opt.LoadFlags,
    sampling: opt.SamplingFlags,
    template: opt.TemplateFlags,
) -> None:
    """Chat with a model. /help lists what can be typed.

    Without MODEL a small demo model is made on first use. Reads lines from a pipe too:
    `echo "Hello" | moe-local chat`.
    """
    from .session import load, stderr

    options, chosen, settings = flags.options(), sampling.options(), template.settings()
    with load(model, options, pack=pack, template=settings) as engine:
        session = engine.chat(chosen, system=system)
        terminal = sys.stdin.isatty()
        if terminal:
            name = engine.load_plan.checkpoint.directory.name
            banner = f"{name}: {engine.plan.share:.0%} of its experts fit. /help for help, /exit to leave."
            stderr.print(banner, markup=False, soft_wrap=True)
        lines = _Lines(terminal)
        try:
            _Chat(engine, session, lines, folded=fold, strict=not terminal).run()
        finally:
            lines.close()


class _Lines:
    """Lines from the user, with editing and history at a terminal."""

    def __init__(self, terminal: bool) -> None:
        self._terminal = terminal
        self._history = cache_dir() / "chat_history"
        if terminal:
            self._load_history()

    def _load_history(self) -> None:
        try:
            import readline

            cache_dir().mkdir(parents=True, exist_ok=True)
            readline.set_history_length(1000)
            if self._history.exists():
                readline.read_history_file(self._history)
        except (ImportError, OSError):  # no such library on Windows, whose console edits lines itself
            self._terminal = False

    def next(self) -> str | None:
        """The next line, without space around it; None at the end of input."""
        try:
            line = input("> ") if sys.stdin.isatty() else self._piped()
        except EOFError:
            return None
        except UnicodeDecodeError as error:
            raise MoeLocalError(f"what was typed is not {error.encoding} text") from error
        return None if line is None else line.strip()

    @staticmethod
    def _piped() -> str | None:
        line = sys.stdin.readline(MOST_PROMPT + 1)
        if len(line) > MOST_PROMPT:
            raise MoeLocalError(f"a line has more than {MOST_PROMPT} characters", remedy="give a shorter one")
        return line or None

    def close(self) -> None:
        if self._terminal:
            import readline

            readline.write_history_file(self._history)


class _Chat:
    """The loop: lines that begin with a slash are commands, `do_` methods here; others are said to the model.

    At a terminal an error is told and the chat goes on, unless the model's files are what is wrong; `strict` ends it.
    """

    # Not the standard library's `cmd.Cmd`: every word said to the model would be a command there, "EOF" the end of
    # input, and a line from a pipe of any length; little but its `while` would be left.

    def __init__(self, engine: Engine, session: ChatSession, lines: _Lines, *, folded: bool, strict: bool) -> None:
        self._engine = engine
        self._session = session
        self._lines = lines
        self._folded = folded
        self._strict = strict
        self._reasoning = ""  # of the last answer
        self._finished = False

    def run(self) -> None:
        """Answers until the user leaves, or there are no more lines."""
        while not self._finished:
            with self._forgiving():
                line = self._lines.next()
                if line is None:
                    return
                if line.startswith("/"):
                    self.command(line)
                elif line:
                    self.say(line)

    def say(self, line: str) -> None:
        with self._shown() as watching:
            answer = self._session.send(line, **watching)
        self._finish(answer)

    def do_regenerate(self, argument: str) -> None:
        with self._shown() as watching:
            answer = self._session.regenerate(**watching)
        self._finish(answer)

    def command(self, line: str) -> None:
        name, _, argument = line[1:].partition(" ")
        method = getattr(self, f"do_{name}", None)
        if method is None:
            raise MoeLocalError(f"there is no command /{name}", remedy="/help lists them")
        method(argument.strip())

    @contextmanager
    def _forgiving(self) -> Iterator[None]:
        """Tells of errors, and takes Ctrl-C as the end of a line; nothing of it when `strict`."""
        try:
            yield
        except KeyboardInterrupt:
            if self._strict:
                raise
            echo("", err=True)
        except MoeLocalError as error:
            if self._strict or isinstance(error, CheckpointError | StorageError):
                raise
            echo(f"error: {error}", err=True)

    @contextmanager
    def _shown(self) -> Iterator[Watching]:
        """What an answer is made with so that it is written as it comes, and Ctrl-C ends it."""
        from .session import interruptible, show_reasoning, write

        with interruptible() as interrupt, show_reasoning(folded=self._folded) as reasoning:
            yield {"on_text": reasoning.then(write), "on_reasoning": reasoning.piece, "interrupt": interrupt}

    def _finish(self, answer: Generation) -> None:
        """Ends the answer's line, and says what it took."""
        from .session import status, stderr, write

        write("\n")
        self._reasoning = answer.reasoning
        if stderr.is_terminal and sys.stdin.isatty():
            stderr.print(status(self._engine, answer), style="dim", soft_wrap=True)

    def do_help(self, argument: str) -> None:
        echo(HELP)

    def do_stats(self, argument: str) -> None:
        echo_json(self._engine.stats(), indent=2)

    def do_system(self, argument: str) -> None:
        if argument:
            self._session.set_system(argument)
        echo(self._session.system or "(no system message)")

    def do_reset(self, argument: str) -> None:
        self._session.reset()
        echo("(forgotten)")

    def do_save(self, argument: str) -> None:
        self._session.save(_file(argument))
        echo(f"(saved to {argument})")

    def do_load(self, argument: str) -> None:
        self._session.load(_file(argument))
        echo(f"({len(self._session.messages)} messages loaded)")

    def do_fold(self, argument: str) -> None:
        self._folded = not self._folded
        echo("(reasoning is folded)" if self._folded else "(reasoning is shown)")

    def do_reasoning(self, argument: str) -> None:
        echo(self._reasoning or "(the last answer had no reasoning)")

    def do_think(self, argument: str) -> None:
        from dataclasses import replace

        generator = self._engine.generator
        generator.use_template(replace(generator.template.settings, level=argument or None))
        echo(f"(thinking: {argument or 'as the model does by itself'})")

    def do_exit(self, argument: str) -> None:
        self._finished = True


def _file(argument: str) -> Path:
    if not argument:
        raise MoeLocalError("which file?", remedy="write its name after the command")
    try:
        return Path(argument).expanduser()
    except RuntimeError as error:  # somebody's home that is not known
        raise MoeLocalError(f"{argument} is nowhere ({error})", remedy="write the whole path") from error
