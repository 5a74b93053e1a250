"""`moe-local pack`, `verify` and `stores`: our own packed copies of checkpoints."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from moe_local.errors import CheckpointError
from moe_local.formats.registry import GROUP_SIZES, dense_names, packable_names
from moe_local.units import format_size

from . import options as opt
from .output import Console, echo, echo_json


def pack(
    model: Annotated[str, typer.Argument(help="A checkpoint directory, a GGUF file or a hub id.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The folder to make. Default: one in the cache folder.")
    ] = None,
    format: Annotated[
        str,
        typer.Option(
            help=f"Of the experts: {', '.join(packable_names())}; auto is int4, or for a model that is quantised"
            " already the nearest to what it has."
        ),
    ] = "auto",
    group_size: Annotated[
        int, typer.Option(help=f"Columns that share a scale in int4: {', '.join(map(str, GROUP_SIZES))}.")
    ] = 64,
    dense_format: Annotated[
        str,
        typer.Option(
            help=f"Of linear layers outside the experts: keep, {', '.join(dense_names())}; embeddings: keep or int8."
        ),
    ] = "int8",
    as_json: opt.Json = False,
) -> None:
    """Write a packed copy of a model: smaller, read in one piece an expert, multiplied as it lies on the disk.

    Takes the memory of a few experts, whatever the model's size. Interrupt or kill it and run it again: it goes on.
    Example: `moe-local pack Qwen/Qwen3-30B-A3B --format int4 --group-size 32`.
    """
    from moe_local.store import cached_store, first_use
    from moe_local.store import pack as write

    from .session import progress, stderr

    job = first_use.plan(model, first_use.choose(format, group_size, dense_format))
    target = output or cached_store(job)
    stderr.print(f"{format_size(job.checkpoint.total_bytes)} to {format_size(job.total)} in {target}", markup=False)
    stderr.print(f"experts in {job.expert_formats}: {job.error:.2%} off the original (RMS, sampled)", markup=False)
    began = time.perf_counter()
    with progress() as report:
        write(job, target, report)
    seconds = time.perf_counter() - began
    if as_json:
        found = {"store": str(target), "bytes": job.total, "source_bytes": job.checkpoint.total_bytes, **job.identity}
        echo_json({**found, "error": job.error, "seconds": round(seconds, 2)})
    else:
        stderr.print(f"packed in {seconds:.1f} s", markup=False)
        echo(target)


def verify(store: Annotated[Path, typer.Argument(help="The folder of a store.")]) -> None:
    """Read every byte of a store and compare it with its checksums. Names what is damaged; exit code 3 then."""
    from moe_local.store import is_store
    from moe_local.store import verify as check

    from .session import progress

    if not is_store(store):
        raise CheckpointError(f"{store} is not a store, or not a whole one", remedy="`moe-local stores` lists them")
    with progress() as report:
        damaged = check(store, report)
    for what in damaged:
        echo(what)
    if damaged:
        raise CheckpointError(f"{store} is damaged in {len(damaged)} places", remedy="pack it again")
    echo(f"{store} is whole")


def stores(
    remove: Annotated[str | None, typer.Option(help="Delete the store of this name.")] = None,
    as_json: opt.Json = False,
) -> None:
    """List the stores in the cache folder, or remove one."""
    from moe_local.store import store_index

    if remove is not None:
        gone = store_index.remove(remove)
        echo(f"removed {gone.name} ({format_size(gone.size)})")
        return
    found = store_index.stores()
    if as_json:
        rows = [{**vars(stored), "directory": str(stored.directory), "whole": stored.whole} for stored in found]
        echo_json(rows)
        return
    if not found:
        echo(f"no stores in {store_index.folder()}")
        return
    table = Table(box=None, pad_edge=False)
    for title in ("name", "size", "formats", "made from"):
        table.add_column(title, overflow="fold")
    for stored in found:
        state = stored.formats or "unfinished: pack it again to go on"
        table.add_row(escape(stored.name), format_size(stored.size), state, escape(stored.source))
    Console().print(table)
