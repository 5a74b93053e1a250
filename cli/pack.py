"""`moe-local pack` and `verify`: our own packed copies of checkpoints."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moe_local.errors import CheckpointError
from moe_local.formats.registry import GROUP_SIZES, dense_names, packable_names
from moe_local.units import format_size

from . import options as opt
from .completion import complete_model
from .download import PackedAsItComes
from .output import echo, echo_json

if TYPE_CHECKING:
    from moe_local.store.job import Job, Packing


def pack(
    model: opt.NeededModel,
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
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before a download.")] = False,
    as_json: opt.Json = False,
) -> None:
    """Write a packed copy of a model: smaller, read in one piece an expert, multiplied as it lies on the disk.

    Takes the memory of a few experts, whatever the model's size. Interrupt or kill it and run it again: it goes on. A
    model of the hub is packed while it is downloaded, and each file of it deleted once it is packed.
    Example: `moe-local pack Qwen/Qwen3-30B-A3B --format int4 --group-size 32`.
    """
    from .load import resolve
    from .output import stderr

    began = time.perf_counter()

    def choose() -> Packing:
        from moe_local.store import first_use

        return first_use.choose(format, group_size, dense_format)

    take = PackedAsItComes(choose, output, on_first_use=False, yes=yes)
    source = resolve(model, stores=False, take=take)
    job, store = (take.job, source) if take.job is not None else _pack_local(source, choose(), output)
    seconds = time.perf_counter() - began
    if as_json:
        found = {"store": str(store), "bytes": job.total, "source_bytes": job.checkpoint.total_bytes, **job.identity}
        echo_json({**found, "error": _error(store), "seconds": round(seconds, 2)})
    else:
        stderr.print(f"{_error(store):.2%} off the original (RMS, sampled); {seconds:.1f} s", markup=False)
        echo(store)


def _pack_local(source: Path, packing: Packing, output: Path | None) -> tuple[Job, Path]:
    from moe_local.store import cached_store, first_use
    from moe_local.store import pack as write

    from .load import progress
    from .output import stderr

    job = first_use.plan(source, packing)
    target = output or cached_store(job)
    stderr.print(f"{format_size(job.checkpoint.total_bytes)} to {format_size(job.total)} in {target}", markup=False)
    stderr.print(f"experts in {job.expert_formats}", markup=False)
    with progress() as report:
        return job, write(job, target, report)


def _error(store: Path) -> float:
    """What packing cost, see `relative_error`."""
    from moe_local.store.manifest import Manifest

    return float(Manifest.read(store).source["error"])


def verify(
    name: Annotated[
        str,
        typer.Argument(metavar="STORE", help="A store: its folder, or its name.", autocompletion=complete_model),
    ],
) -> None:
    """Read every byte of a store and compare it with its checksums. Names what is damaged; exit code 3 then."""
    from moe_local.store.body import is_store
    from moe_local.store.short_names import find_known

    from .load import progress

    store = Path(name) if Path(name).exists() else find_known(name).where
    if not is_store(store):
        raise CheckpointError(f"{store} is not a store, or not a whole one", remedy="`moe-local list` shows them")
    from moe_local.store import verify as check

    with progress() as report:
        damaged = check(store, report)
    for what in damaged:
        echo(what)
    if damaged:
        raise CheckpointError(f"{store} is damaged in {len(damaged)} places", remedy="pack it again")
    echo(f"{store} is whole")
