"""`moe-local bench serve`: how fast a server answers many at once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from moe_local.errors import MoeLocalError

from . import options as opt
from .batch import SOME_FAILED
from .output import Console, echo_json, stderr
from .workload import assert_some

if TYPE_CHECKING:
    from moe_local.bench.serving import Load


def serve(
    url: Annotated[
        str | None, typer.Argument(metavar="[URL]", help="Its address. Default: the only one that runs here.")
    ] = None,
    concurrency: Annotated[str, typer.Option(help="Requests at a time; may be a list, like 1,4,16.")] = "1,4,16",
    requests: Annotated[int, typer.Option(min=1, help="Requests in all, for each concurrency.")] = 32,
    new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of each answer.")] = 64,
    prompts: Annotated[
        Path | None, typer.Option(help="Prompts, as `bench live` takes them. Default: eight of ours.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Use the first so many prompts.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy. Default: the server's.")] = None,
    name: Annotated[str | None, typer.Option("--name", help="The model's name there. Default: the first.")] = None,
    api_key: Annotated[str | None, typer.Option(help="What the server wants to be told.")] = None,
    as_json: opt.Json = False,
) -> None:
    """Ask a server for many answers at once: time to the first token, between tokens, tokens/s.

    Any server that speaks OpenAI's chat completions, ours or another's. Quantiles are of whole requests as a client
    sees them. Example: `moe-local bench serve http://127.0.0.1:8000 --concurrency 1,16 --requests 64`.
    """
    from moe_local.bench.serving import Load
    from moe_local.bench.workload import OWN, prompts_hash, read_prompts

    from .remote_server import RemoteServer, address

    assert_some(limit)
    steps = _steps(concurrency)
    where = address(url or "")
    given = OWN[:limit] if prompts is None else read_prompts(prompts, limit)
    load = Load(
        where, name or RemoteServer(where, api_key).first_model(), given, requests, new_tokens, api_key, temperature
    )
    runs = [_measured(load, step) for step in steps]
    report = {"server": where, "model": load.model, "prompts": prompts_hash(given), "new_tokens": new_tokens}
    if as_json:
        echo_json({**report, "runs": runs})
    else:
        _show(runs)
    for error in sorted({error for run in runs for error in run["errors"]}):
        stderr.print(f"failed: {error}", markup=False, soft_wrap=True)
    if any(run["failed"] for run in runs):
        raise typer.Exit(SOME_FAILED)


def _steps(concurrency: str) -> list[int]:
    parts = concurrency.split(",")
    if not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise MoeLocalError(f"--concurrency {concurrency} is no list of numbers", remedy="write 1,4,16, say")
    return [int(part) for part in parts]


def _measured(load: Load, concurrency: int) -> dict[str, Any]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from moe_local.bench.serving import drive

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal) as bar:
        task = bar.add_task(f"{concurrency} at a time", total=load.requests)
        return drive(load, concurrency, lambda reply: bar.advance(task))


def _show(runs: list[dict[str, Any]]) -> None:
    table = Table(box=None, pad_edge=False)
    for title in ("at a\ntime", "\ntokens/s", "\nfailed", "\ncached"):
        table.add_column(title, justify="right", no_wrap=True)
    for title in ("first token, s", "between tokens, ms", "answer, s"):
        table.add_column(f"{title}\np50/p95/p99", justify="right", no_wrap=True)
    for run in runs:
        asked = run["prompt_tokens"]
        table.add_row(
            str(run["concurrency"]),
            f"{run['tokens_per_second']:.1f}",
            str(run["failed"]),
            f"{run['cached_tokens'] / asked:.0%}" if asked else "-",
            _three(run["time_to_first_token"], 1, 2),
            _three(run["time_between_tokens"], 1000, 0),
            _three(run["time_of_answer"], 1, 1),
        )
    Console().print(table)


def _three(quantiles: dict[str, float | None], scale: float, digits: int) -> str:
    return "/".join("-" if value is None else f"{value * scale:.{digits}f}" for value in quantiles.values())
