"""The commands of a chat: what each is called, what it says of itself, and what it does."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from moe_local.errors import MoeLocalError
from moe_local.registry import meant
from moe_local.units import format_size, parse_budget

from .chat_settings import SETTINGS, changed, setting, shown
from .output import echo, echo_json
from .stats import stats_lines
from .typed import Command

if TYPE_CHECKING:
    from moe_local.generation.transcript import Transcript

    from .conversation import Conversation
    from .lines import Lines

FILES, MODELS = ("file",), ("model",)  # what completes a command whose argument is one
_THINKING = ("on", "off", "low", "medium", "high")


@dataclass(frozen=True)
class Entry:
    """A command, as /help shows it; the method that does it is `do_` and its name."""

    name: str
    says: str
    argument: str = ""
    also: tuple[str, ...] = ()
    completes: tuple[str, ...] = ()  # words that its argument begins with, or FILES, or MODELS


COMMANDS = (
    Entry("help", "this", also=("?",)),
    Entry("set", "how tokens are chosen; `default` is the model's", "[NAME [VALUE]]", completes=SETTINGS),
    Entry("system", "show, or replace, the system message", "[TEXT]"),
    Entry("think", f"how much to reason: {', '.join(_THINKING)}", "[LEVEL]", completes=_THINKING),
    Entry("fold", "show only that the model reasons, or what"),
    Entry("reasoning", "what it reasoned before its last answer"),
    Entry("edit", "write the message in $EDITOR", "[TEXT]"),
    Entry("regenerate", "answer the last message again", also=("regen",)),
    Entry("undo", "forget the last message and its answer"),
    Entry("reset", "forget the conversation", also=("clear",)),
    Entry("save", "write the conversation as JSON", "FILE", completes=FILES),
    Entry("load", "take up a saved conversation", "FILE", completes=FILES),
    Entry("model", "go on with another model", "[NAME]", completes=MODELS),
    Entry("stats", "what the expert cache did so far, and memory", "[json]", completes=("json",)),
    Entry("vram", "how much GPU memory it may use; another SIZE, like 8GiB", "[SIZE]"),
    Entry("exit", "leave (also Ctrl-D)", also=("bye", "quit")),
)  # fmt: skip
NAMES = {name: entry for entry in COMMANDS for name in (entry.name, *entry.also)}
_MORE = """\
//TEXT says /TEXT. Several lines: paste them, put them between \"\"\", or end each but the last with \\.
Tab completes. Ctrl-C stops an answer and not the chat. Anything else is said to the model."""


class Answer(Protocol):
    """The last answer, as far as commands ask for it."""

    @property
    def reasoning(self) -> str | None: ...


class Talk(Protocol):
    """A conversation, whoever answers."""

    folded: bool

    @property
    def session(self) -> Transcript: ...

    @property
    def last(self) -> Answer | None: ...

    def regenerate(self) -> None: ...


class SharedCommands(ABC):
    """Does what the commands of any chat ask, in methods that begin with `do_`. Errors are MoeLocalErrors."""

    # Not the standard library's `cmd.Cmd`: every word said to the model would be a command there, "EOF" the end of
    # input, and a line from a pipe of any length; little but its `while` would be left.

    entries: tuple[Entry, ...] = COMMANDS  # that /help lists

    def __init__(self, conversation: Talk, lines: Lines) -> None:
        self._talk = conversation
        self._lines = lines
        self.finished = False  # the user has left

    @abstractmethod
    def shown(self, name: str) -> str:
        """A setting of `/set` for people."""

    @abstractmethod
    def think(self, level: str | None) -> None:
        """From now on so much reasoning; None: as the model does by itself."""

    def run(self, command: Command) -> None:
        entry = NAMES.get(command.name)
        if entry is None:
            near = meant(f"/{command.name}", [f"/{name}" for name in NAMES])
            remedy = f"{near} /help lists all" if near else "/help lists them"
            raise MoeLocalError(f"there is no command /{command.name}", remedy=remedy)
        getattr(self, f"do_{entry.name}")(command.argument)

    def do_help(self, argument: str) -> None:
        for entry in self.entries:
            names = ", ".join(f"/{name}" for name in (entry.name, *entry.also))
            echo(f"{f'{names} {entry.argument}':<22} {entry.says}")
        echo(_MORE)

    def do_set(self, argument: str) -> None:
        typed, *value = argument.split(maxsplit=1)[:2] or [""]
        names = [setting(typed)] if typed else list(SETTINGS)
        session = self._talk.session
        if value:
            session.sampling = changed(session.sampling, names[0], value[0])
        for name in names:
            echo(f"{name:<19} {self.shown(name)}")

    def do_system(self, argument: str) -> None:
        session = self._talk.session
        if argument:
            session.set_system(argument)
        echo(session.system or "(no system message)")

    def do_think(self, argument: str) -> None:
        if argument and argument not in _THINKING:
            raise MoeLocalError(f"/think {argument} is unknown", remedy=f"use {', '.join(_THINKING)}")
        self.think(argument or None)
        echo(f"(thinking: {argument or 'as the model does by itself'})")

    def do_fold(self, argument: str) -> None:
        self._talk.folded = not self._talk.folded
        echo("(reasoning is folded)" if self._talk.folded else "(reasoning is shown)")

    def do_reasoning(self, argument: str) -> None:
        last = self._talk.last
        echo(last.reasoning if last is not None and last.reasoning else "(the last answer had no reasoning)")

    def do_edit(self, argument: str) -> None:
        self._lines.edit(argument)

    def do_regenerate(self, argument: str) -> None:
        self._talk.regenerate()

    def do_undo(self, argument: str) -> None:
        self._talk.session.undo()
        echo("(the last message and its answer are forgotten)")

    def do_reset(self, argument: str) -> None:
        self._talk.session.reset()
        echo("(forgotten)")

    def do_save(self, argument: str) -> None:
        self._talk.session.save(_file(argument))
        echo(f"(saved to {argument})")

    def do_load(self, argument: str) -> None:
        self._talk.session.load(_file(argument))
        echo(f"({len(self._talk.session.messages)} messages loaded)")

    def do_exit(self, argument: str) -> None:
        self.finished = True


class ChatCommands(SharedCommands):
    """Those of a chat with a model that is loaded here."""

    def __init__(self, conversation: Conversation, lines: Lines) -> None:
        super().__init__(conversation, lines)
        self._conversation = conversation

    def shown(self, name: str) -> str:
        """A setting of `/set` for people."""
        config = self._conversation.engine.generator.model.generation_config
        return shown(self._conversation.session.sampling, name, config)

    def think(self, level: str | None) -> None:
        """From now on so much reasoning; None: as the model does by itself."""
        generator = self._conversation.engine.generator
        generator.use_template(replace(generator.template.settings, level=level))

    def do_model(self, argument: str) -> None:
        if argument:
            self._conversation.change_model(argument)
        echo(self._conversation.banner)

    def do_stats(self, argument: str) -> None:
        stats = self._conversation.engine.stats()
        if argument == "json":
            echo_json(stats, indent=2)
            return
        for line in stats_lines(stats, context=self._conversation.context):
            echo(line)

    def do_vram(self, argument: str) -> None:
        engine = self._conversation.engine
        if argument:
            engine.resize(vram=parse_budget(argument, lambda: engine.plan.vram or 0))
        if engine.plan.vram is None:
            raise MoeLocalError("there is no GPU here: experts are in RAM")
        echo(f"({format_size(engine.plan.vram)} of device memory: {engine.plan.share:.0%} of the experts fit)")


def _file(argument: str) -> Path:
    if not argument:
        raise MoeLocalError("which file?", remedy="write its name after the command")
    try:
        return Path(argument).expanduser()
    except RuntimeError as error:  # somebody's home that is not known
        raise MoeLocalError(f"{argument} is nowhere ({error})", remedy="write the whole path") from error
