"""How a command line is read: `--debug` anywhere, other programs' habits, and every mistake in one line."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from .config import from_file, option_of, variable
from .failure import USAGE, UsageError, set_debug
from .habits import ALIASES, COMMANDS, OPTIONS
from .output import echo

RUN = "run"  # ollama's: chat, or generate where there is a prompt
_DEBUG = "--debug"
_PROMPTS = {"-p", "--prompt", "-f", "--file"}
_MODELS = {"-m", "--model"}
# typer has no public name for it, and takes it from a place that its release decides.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]


class Command(TyperCommand):
    """A command with `--debug` among its options, that knows other programs' options and what was set beforehand."""

    def __init__(self, *args: Any, **given: Any) -> None:
        super().__init__(*args, **given)
        for parameter in self.params:
            if (name := option_of(parameter)) is not None:
                held: Any = parameter
                held.envvar, held.show_envvar = held.envvar or variable(name), False

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        if parent is not None and not extra.get("resilient_parsing"):
            try:
                settings = from_file(_model(args, _options(self)), options_of(parent.find_root().command))
            except UsageError as error:
                refuse(str(error))
            names = {option_of(parameter): parameter.name for parameter in self.params}
            extra["default_map"] = {names[each.name]: each.value for each in settings if each.name in names}
        return super().make_context(info_name, args, parent, **extra)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        known = _options(self)
        debugs = {number for number, option in _split(args, known)[0] if option == _DEBUG}
        if debugs:
            set_debug(True)
            args = [word for number, word in enumerate(args) if number not in debugs]
        if not ctx.resilient_parsing:
            for _, option in _split(args, known)[0]:
                name = option.partition("=")[0]
                if name in OPTIONS and name not in known:
                    refuse(f"there is no {name} here; {OPTIONS[name]}")
        return super().parse_args(ctx, args)


class Commands(TyperGroup):
    """The commands by their names and aliases."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        if not args:
            return super().make_context(info_name, args, parent, **extra)  # help
        with _in_one_line():
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: Any) -> Any:
        with _in_one_line():
            return super().invoke(ctx)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        first = args[0].partition("=")[0] if args and not ctx.resilient_parsing else ""
        if first.startswith("-") and first not in _options(self) and first not in ctx.help_option_names:
            refuse(f"{first} is an option of a command, which comes first; like `moe-local chat {first} ...`")
        return super().parse_args(ctx, args)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return super().get_command(ctx, ALIASES.get(cmd_name, cmd_name))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, rest = args[0], args[1:]
        if name == RUN:
            chat, generate = self.commands["chat"], self.commands["generate"]
            prompted = has_prompt(rest, {**_options(chat), **_options(generate)})
            return name, generate if prompted else chat, rest
        if name in COMMANDS and not ctx.resilient_parsing:
            refuse(f"there is no command {name} here; {COMMANDS[name]}")
        return super().resolve_command(ctx, args)


def options_of(group: Any) -> set[str]:
    """The names of all options that can be set beforehand, of all commands."""
    commands = [one for each in group.commands.values() for one in getattr(each, "commands", {"": each}).values()]
    return {name for command in commands for each in command.params if (name := option_of(each)) is not None}


def _model(args: Sequence[str], known: Mapping[str, bool]) -> str | None:
    """What a command line names as its model, if it does."""
    options, words = _split(args, known)
    for number, option in options:
        name, equals, value = option.partition("=")
        if name in _MODELS:
            return value if equals else next(iter(args[number + 1 :]), None)
    return words[0] if words else None


def has_prompt(args: Sequence[str], known: Mapping[str, bool]) -> bool:
    """Whether `run` is given something to answer: a prompt beside its model, or one on stdin."""
    options, words = _split(args, known)
    named = {option.partition("=")[0] for _, option in options}
    given = len(words) + bool(named & _MODELS)
    if named & {"-h", "--help", "--server"}:  # a server is talked with by `chat` alone
        return False
    if named & _PROMPTS or given > 1 or (words and is_prompt(words[0])):
        return True
    return not sys.stdin.isatty()


def is_prompt(word: str) -> bool:
    """Whether a word that stands where a model's name does is a prompt: it has spaces, and is no path."""
    from moe_local.checkpoint.hub import local_path
    from moe_local.errors import CheckpointError

    try:
        return len(word.split()) > 1 and local_path(word) is None
    except CheckpointError:  # a file that is no model
        return False


def _options(command: Any) -> dict[str, bool]:
    """The options of a command, and whether each takes a value."""
    found = {}
    for parameter in command.params:
        if parameter.param_type_name == "option":
            for name in (*parameter.opts, *parameter.secondary_opts):
                found[name] = not (parameter.is_flag or parameter.count)
    return found


def _split(args: Sequence[str], known: Mapping[str, bool]) -> tuple[list[tuple[int, str]], list[str]]:
    """Options with their places, and the other words, without what is the value of an option."""
    options: list[tuple[int, str]] = []
    words: list[str] = []
    numbered = iter(enumerate(args))
    for number, word in numbered:
        if word == "--":
            words += [rest for _, rest in numbered]
        elif word.startswith("-") and len(word) > 1:
            options.append((number, word))
            if known.get(word):
                next(numbered, None)
        else:
            words.append(word)
    return options, words


@contextmanager
def _in_one_line() -> Iterator[None]:
    try:
        yield
    except _UsageError as error:
        given: Any = error
        told, context = given.format_message(), given.ctx
        where = f"; see `{context.command_path} --help`" if context is not None else ""
        refuse(f"{told[:1].lower()}{told[1:].rstrip('.')}{where}")


def refuse(said: str) -> NoReturn:
    """Ends a command line that makes no sense."""
    echo(f"error: {' '.join(said.split())}", err=True)
    raise typer.Exit(USAGE)
