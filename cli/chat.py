"""`moe-local chat`: a conversation at the terminal, or line by line from a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from moe_local.errors import CheckpointError, MoeLocalError, StorageError

from . import options as opt
from .loading import announced
from .output import echo, stderr
from .typed import Command

if TYPE_CHECKING:
    from .chat_commands import ChatCommands
    from .conversation import Conversation
    from .lines import Lines


class ContextShift(StrEnum):
    """What a conversation does that fills the context."""

    ON = "on"
    OFF = "off"


def chat(
    model: opt.Model = None,
    system: Annotated[str | None, typer.Option(help="A system message to begin with.")] = None,
    fold: Annotated[
        bool, typer.Option("--fold", help="Show that the model reasons, and not what; /fold changes it.")
    ] = False,
    wrap: Annotated[
        bool,
        typer.Option("--wrap/--no-wrap", help="Break lines between words at a terminal; or as the terminal does."),
    ] = True,
    context_shift: Annotated[
        ContextShift,
        typer.Option(help="A full context goes on without the oldest turns (on), or ends the conversation (off)."),
    ] = ContextShift.ON,
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
    with announced(f"loading {model or 'the demo model'} ..."):
        options, chosen, settings = flags.options(), sampling.options(), template.settings()
        from .chat_commands import ChatCommands
        from .conversation import Conversation, Setup
        from .lines import lines_of_user
        from .session import load

    terminal = sys.stdin.isatty()
    with load(model, options, pack=pack, template=settings, purpose="a chat") as engine:
        session = engine.chat(chosen, system=system)
        session.context_shift = context_shift is ContextShift.ON
        with closing(Conversation(model, engine, session, Setup(options, pack, wrap), folded=fold)) as conversation:
            if terminal:
                stderr.print(f"{conversation.banner} /help for help, /exit to leave.", markup=False, soft_wrap=True)
            lines = lines_of_user()
            _Chat(conversation, ChatCommands(conversation, lines), lines, strict=not terminal).run()


class _Chat:
    """The loop: commands are done, and all else is said to the model.

    At a terminal an error is told and the chat goes on, unless the model's files are what is wrong; `strict` ends it.
    """

    def __init__(self, conversation: Conversation, commands: ChatCommands, lines: Lines, *, strict: bool) -> None:
        self._conversation = conversation
        self._commands = commands
        self._lines = lines
        self._strict = strict

    def run(self) -> None:
        """Answers until the user leaves, or there are no more lines."""
        while not self._commands.finished:
            with self._forgiving():
                typed = self._lines.next()
                if typed is None:
                    return
                if isinstance(typed, Command):
                    self._commands.run(typed)
                elif typed:
                    self._conversation.say(typed)

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
