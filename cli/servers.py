"""`moe-local ps` and `stop`: the servers that run on this machine."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from moe_local.errors import MoeLocalError
from moe_local.serve.running import Running, end, servers

from . import options as opt
from .models import ago
from .output import Console, echo, echo_json

_PATIENCE = 60.0  # seconds, after those that a server gives the answers under way


def ps(as_json: opt.Json = False) -> None:
    """List the servers that `moe-local serve` runs on this machine."""
    found = servers()
    if as_json:
        echo_json([asdict(each) for each in found])
        return
    if not found:
        echo("no servers run here: `moe-local serve MODEL` begins one")
        return
    table = Table(box=None, pad_edge=False)
    for title in ("model", "url", "process", "begun"):
        table.add_column(title, overflow="fold")
    for each in found:
        table.add_row(escape(each.model), escape(each.url), str(each.pid), ago(each.started))
    Console().print(table)


def stop(
    which: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]", help="A model's name, a URL or a process's number.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Stop all of them.")] = False,
    timeout: Annotated[float, typer.Option(min=0, help="Seconds to wait for each.")] = _PATIENCE,
) -> None:
    """Stop servers that `moe-local serve` runs here, after the answers under way. The only one needs no NAME."""
    for each in _chosen(servers(), which or [], everything=everything):
        if not end(each, timeout):
            raise MoeLocalError(
                f"{each.model} at {each.url} still ends",
                remedy=f"wait, or give a longer --timeout; if it hangs, end process {each.pid}",
            )
        echo(f"stopped {each.model} at {each.url}")


def _chosen(found: list[Running], which: list[str], *, everything: bool) -> list[Running]:
    """Raises MoeLocalError where it is not clear which."""
    if not found:
        raise MoeLocalError("no servers run here")
    if everything or (not which and len(found) == 1):
        return found
    if not which:
        raise MoeLocalError(f"{len(found)} servers run here", remedy="name one as `moe-local ps` shows it, or --all")
    chosen = []
    for name in which:
        meant = [each for each in found if name in (each.model, each.url, each.url.rstrip("/"), str(each.pid))]
        if not meant:
            raise MoeLocalError(f"there is no server {name}", remedy="`moe-local ps` shows those that run")
        chosen += meant
    return chosen
