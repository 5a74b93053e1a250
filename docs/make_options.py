"""Writes docs/options.md from the commands themselves: `python -m docs.make_options`. A test holds the page to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from moe_local.cli.main import app

PAGE = Path(__file__).with_name("options.md")
_HEAD = """# Options

Of every command, made from the commands by `python -m docs.make_options`. What an option is without being given comes
last in its line; the variable sets it beforehand, and so does the [settings file](reference.md#settings).
`--debug`, before or after a command, shows a traceback when something fails.
"""


def page() -> str:
    """The whole page."""
    root: Any = typer.main.get_command(app)
    sections = [_section(f"moe-local {path}", command) for path, command in _commands(root)]
    return "\n".join([_HEAD, *sections])


def _commands(group: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{before}{name} ")
        else:
            yield f"{before}{name}", command


def _section(path: str, command: Any) -> str:
    about = " ".join((command.help or "").strip().partition("\n\n")[0].split())
    rows = [_row(parameter) for parameter in command.params if parameter.name != "help"]
    table = "".join(["| option | variable | does |\n|---|---|---|\n", *rows])
    return f"## `{path}`\n\n{about}\n\n{table}"


def _row(parameter: Any) -> str:
    option = parameter.param_type_name == "option"
    names = [*parameter.opts, *parameter.secondary_opts] if option else [parameter.metavar or parameter.name.upper()]
    shown = ", ".join(f"`{name}`" for name in names)
    help_ = " ".join((parameter.help or "").split()).replace("|", "\\|")
    default = parameter.default
    told = f" `{default}`" if default not in (None, False, True, ()) and not callable(default) else ""
    variable = f"`{parameter.envvar}`" if isinstance(parameter.envvar, str) else ""
    return f"| {shown} | {variable} | {help_}{told} |\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
