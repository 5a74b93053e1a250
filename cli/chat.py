"""`moe-local chat`: a conversation at the terminal, or line by line from a pipe."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Protocol

import typer

from moe_local.errors import CheckpointError, MoeLocalError, StorageError

from . import options as opt
from .lines import lines_of_user
from .loading import announced
from .output import echo, stderr
from .typed import Command

if TYPE_CHECKING:
    from moe_local.generation.sampling import Sampling
    from moe_local.generation.template_settings import TemplateSettings

    from .chat_commands import SharedCommands
    from .lines import Lines


SERVER = "Server"


class ContextShift(StrEnum):
    """What a conversation does that fills the context."""

    ON = "on"
    OFF = "off"


def chat(
    typed: typer.Context,
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
    server: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help='Talk to a server of OpenAI\'s protocol that runs already; "" is the only one here.',
            rich_help_panel=SERVER,
        ),
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(help="What the server wants to be told.", rich_help_panel=SERVER)
    ] = None,
    pack: opt.Pack = True,
    *,
    flags: opt.LoadFlags,
    sampling: opt.SamplingFlags,
    template: opt.TemplateFlags,
) -> None:
    """Chat with a model. /help lists what can be typed.

    Without MODEL a small demo model is made on first use. Reads lines from a pipe too:
    `echo "Hello" | moe-local chat`. With --server the model is that of a server, and nothing is loaded here.
    """
    if server is not None:
        from .remote import assert_only_asked

        assert_only_asked(typed)
        chosen, settings = sampling.options(), template.settings()
        _talk(server, api_key, chosen, settings, system=system, folded=fold, wrap=wrap)
        return
    name = model or "the demo model"
    with announced(f"loading {name} ..."):
        options, chosen, settings = flags.options(), sampling.options(), template.settings()
        from .ahead import typed_ahead
        from .chat_commands import ChatCommands
        from .conversation import Conversation, Setup
        from .load import find, load_found

        lines = lines_of_user()
    found = find(model, options, pack=pack, purpose="a chat")
    with typed_ahead(lines, name) as ahead, load_found(found, options, settings, ahead) as engine:
        session = engine.chat(chosen, system=system)
        session.context_shift = context_shift is ContextShift.ON
        with closing(Conversation(model, engine, session, Setup(options, pack, wrap), folded=fold)) as conversation:
            ahead.ready()
            _Chat(conversation, ChatCommands(conversation, ahead), ahead).run(ahead.aside)


def _talk(
    url: str,
    api_key: str | None,
    sampling: Sampling,
    template: TemplateSettings,
    *,
    system: str | None,
    folded: bool,
    wrap: bool,
) -> None:
    """Chats with a server's model."""
    from .remote import RemoteCommands, conversation_with

    conversation = conversation_with(url, api_key, sampling, template, system=system, folded=folded, wrap=wrap)
    lines = lines_of_user()
    _Chat(conversation, RemoteCommands(conversation, lines), lines).run()


class _Conversation(Protocol):
    """What is talked to."""

    @property
    def banner(self) -> str: ...

    def say(self, text: str) -> None: ...


class _Chat:
    """The loop: commands are done, and all else is said to the model.

    At a terminal an error is told and the chat goes on, unless the model's files are what is wrong; a chat from a
    pipe ends with it.
    """

    def __init__(self, conversation: _Conversation, commands: SharedCommands, lines: Lines) -> None:
        self._conversation = conversation
        self._commands = commands
        self._lines = lines
        self._strict = not sys.stdin.isatty()

    def run(self, aside: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
        """Answers until the user leaves, or there are no more lines. The terminal is free to greet on in `aside`."""
        if not self._strict:
            banner = f"{self._conversation.banner} /help for help, /exit to leave."
            with aside():
                stderr.print(banner, markup=False, soft_wrap=True)
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
        """Tells of errors, and takes Ctrl-C as the end of a line; nothing of it from a pipe."""
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
