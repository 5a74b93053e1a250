"""`moe-local config`: what is set beforehand, and from where."""

from __future__ import annotations

from typing import Annotated

import typer

from . import options as opt
from .commands import options_of
from .config import Setting, config_file, from_environment, from_file, variable
from .output import Console, echo, echo_json


def config(
    context: typer.Context,
    model: opt.Model = None,
    every: Annotated[
        bool, typer.Option("--all", help="Also the options that are not set, with their variables.")
    ] = False,
    as_json: opt.Json = False,
) -> None:
    """Show the settings that hold unless others are typed, and where each comes from.

    They are kept in a TOML file that you write: [defaults] for all models, [models."Qwen/Qwen3-30B-A3B"] for one.
    Names are those of options, like `context = 8192`. An environment variable for each, like MOE_LOCAL_CONTEXT, goes
    before the file, and what is typed before both. With MODEL its own part of the file counts, too.
    """
    known = options_of(context.find_root().command)
    held: dict[str, Setting] = {each.name: each for each in [*from_file(model, known), *from_environment(known)]}
    if as_json:
        echo_json({"file": str(config_file()), "settings": [vars(held[name]) for name in sorted(held)]})
        return
    file = config_file()
    echo(f"{file}{'' if file.exists() else ' (not there yet)'}")
    _show(held, sorted(known - held.keys()) if every else [])


def _show(held: dict[str, Setting], others: list[str]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("option", "value", "from"):
        table.add_column(title, overflow="fold")
    for name in sorted(held):
        table.add_row(f"--{name}", escape(str(held[name].value)), escape(held[name].source))
    for name in others:
        table.add_row(f"--{name}", "", f"unset; {variable(name)}", style="dim")
    if table.row_count:
        Console().print(table)
