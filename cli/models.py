"""`moe-local list` and `rm`: the models on this machine."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import datetime
from time import time
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from moe_local.errors import MoeLocalError
from moe_local.units import format_size

from . import options as opt
from .completion import complete_model
from .output import Console, echo, echo_json, stderr

if TYPE_CHECKING:
    from moe_local.store.known import Known

_UNITS = (("day", 86400), ("hour", 3600), ("minute", 60))  # seconds


def list_models(as_json: opt.Json = False) -> None:
    """List the models on this machine: downloads of the Hugging Face cache, packed stores, GGUF files, the demo.

    A name, the part after its owner, or the beginning of either does wherever MODEL is asked for.
    """
    from moe_local.store.known import known_models

    found = known_models()
    if as_json:
        echo_json([_fields(known) for known in found])
    elif found:
        _show(found)
    else:
        echo("no models here yet: `moe-local pull` downloads one, `moe-local chat` makes a small demo model")


def _fields(known: Known) -> dict[str, object]:
    used = (
        None if known.used is None else datetime.fromtimestamp(known.used).astimezone().isoformat(timespec="seconds")
    )
    return {**vars(known), "used": used, "where": str(known.where)}


def _show(found: Sequence[Known]) -> None:
    table = Table(box=None, pad_edge=False)
    for title in ("name", "format", "size", "used", "where"):
        table.add_column(title, overflow="fold")
    for known in found:
        form = known.format if known.whole or known.kind != "download" else f"{known.format}, in part"
        table.add_row(
            escape(known.name), escape(form), format_size(known.size), ago(known.used), escape(str(known.where))
        )
    Console().print(table)


def ago(when: float | None) -> str:
    """How long ago that was, in its largest unit."""
    if when is None:
        return ""
    seconds = max(0.0, time() - when)
    for unit, length in _UNITS:
        if seconds >= length:
            count = int(seconds // length)
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "now"


def rm(
    names: Annotated[
        list[str],
        typer.Argument(metavar="NAME", help="Models as `list` names them.", autocompletion=complete_model),
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete downloads, stores or the demo model, after saying what that frees and asking.

    Only what lies in the Hugging Face cache or in moe-local's is deleted. Example: `moe-local rm Qwen/Qwen3-30B-A3B`.
    """
    from moe_local.store.removal import assert_removable, remove
    from moe_local.store.short_names import find_known

    found = list(dict.fromkeys(find_known(name) for name in names))
    for known in found:
        assert_removable(known)
    for known in found:
        stderr.print(f"{known.name}: frees {format_size(known.size)} in {known.where}", markup=False, soft_wrap=True)
    if not yes and not _agrees():
        raise MoeLocalError("nothing was removed")
    for known in found:
        remove(known)
        echo(f"removed {known.name} ({format_size(known.size)})")


def _agrees() -> bool:
    """Whether the user says yes. Raises MoeLocalError where nobody can be asked."""
    if not sys.stdin.isatty():
        raise MoeLocalError("nobody is there to ask", remedy="give --yes")
    stderr.print("Remove? [y/N] ", end="", markup=False)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
