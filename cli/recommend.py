"""`moe-local recommend`: which models suit this machine, or one that is not here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from moe_local.errors import BudgetError, MoeLocalError
from moe_local.paths import cache_dir
from moe_local.planning.machines import Machine, get_profile
from moe_local.units import format_size, parse_budget

from . import options as opt
from .output import Console, echo_json

if TYPE_CHECKING:
    from moe_local.planning.recommend import Suggestion

DEFAULT_CONTEXT = 4096
_WORDS = ("fluent", "maybe", "slow", "too large")


def recommend(
    profile: Annotated[
        str | None,
        typer.Option(help="A machine that is not here, like rtx-3060-12gb. Default: this one, measured."),
    ] = None,
    ram: Annotated[str | None, typer.Option(help="RAM, like 64GiB, instead of the machine's.")] = None,
    vram: Annotated[
        str | None, typer.Option(help="GPU memory, like 16GiB, instead of the machine's; 0 leaves the GPU out.")
    ] = None,
    context: Annotated[int, typer.Option(help="Tokens of context to reserve memory for.")] = DEFAULT_CONTEXT,
    as_json: opt.Json = False,
) -> None:
    """Which Mixture-of-Experts models suit this machine: download, disk, where experts fit, tokens/s, what to type.

    Nothing is fetched. Tokens/s are estimated from sizes and from the machine's speeds, which take two seconds to
    measure (a temporary file of 256 MiB goes into the cache folder): from nothing overlapping to the slowest link
    alone deciding. `moe-local plan MODEL` shows one model in detail.

    Another machine, or more memory for this one: `moe-local recommend --profile rtx-4090`, `moe-local recommend --ram
    64GiB`.
    """
    if context < 1:
        raise MoeLocalError(f"--context {context} is not a number of tokens")
    described = describe(_machine(profile, ram, vram), context)
    if as_json:
        echo_json(described)
    else:
        _show(described)


def _machine(profile: str | None, ram: str | None, vram: str | None) -> Machine:
    """The machine asked for. Raises MoeLocalError for VRAM where there is no GPU."""
    if profile is not None:
        known = get_profile(profile)
        return Machine.of(known, ram=_amount(ram, known.ram), vram=_amount(vram, known.vram))
    from moe_local.bench.machine import this_machine

    from .load import progress

    with progress() as report:
        report("measuring memory and disk", 0.0)
        here = this_machine(cache_dir())
    return here.with_memory(ram=_amount(ram, here.ram), vram=_amount(vram, here.vram or 0))


def _amount(given: str | None, whole: int) -> int | None:
    """Bytes, of a size or a share of what there is."""
    return None if given is None else parse_budget(given, lambda: whole)


def describe(machine: Machine, context: int) -> dict[str, Any]:
    """Every known model on a machine, sizes in bytes, the best first."""
    from moe_local.planning.recommend import recommend as suggested

    return {
        "estimate": True,
        "machine": {**vars(machine)},
        "context": context,
        "models": [_row(each) for each in suggested(machine, context)],
    }


def _row(found: Suggestion) -> dict[str, Any]:
    """One model's figures; all keys are there, None where it does not fit."""
    outcome = found.outcome
    about: dict[str, Any] = {
        "model": found.sizes.name,
        "verdict": _WORDS[found.verdict],
        "parameters": found.sizes.parameters,
        "format": found.formats.experts,
        "context": found.context,
        "download_bytes": found.download,
        "store_bytes": found.store,
        "tokens_per_second": None,
        "bound_by": None,
        "device_share": None,
        "host_share": None,
        "disk_only_share": None,
        "remedy": None,
        "command": f"moe-local chat {found.sizes.name}",
    }
    if isinstance(outcome, BudgetError):
        return {**about, "remedy": outcome.remedy, "command": None}
    return {
        **about,
        "tokens_per_second": [round(end, 2) for end in outcome.tokens_per_second],
        "bound_by": outcome.bound_by,
        "device_share": round(outcome.device_share, 4),
        "host_share": None if outcome.host_share is None else round(outcome.host_share, 4),
        "disk_only_share": round(1 - outcome.memory_share, 4),
    }


def _show(d: dict[str, Any]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from .plan_tables import GPU_CAVEAT, WIDTH, speed

    machine, console = d["machine"], Console()
    console = Console(width=min(console.width, WIDTH) if console.is_terminal else WIDTH)
    gpu = machine["vram"] is not None
    memory = f"{format_size(machine['vram'])} of VRAM, " if gpu else ""
    console.print(
        f"[bold]{escape(machine['name'])}[/] ({escape(machine['title'])}): {memory}{format_size(machine['ram'])} of"
        f" RAM; {'VRAM' if gpu else 'RAM'} {machine['memory_bandwidth']:.0f} GB/s, disk"
        f" {machine['disk_bandwidth']:.1f} GB/s"
    )
    console.print()
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("model", overflow="fold")
    for heading in ("size", "download", "packed", *(["in VRAM"] if gpu else []), "in RAM", "tokens/s", ""):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in d["models"]:
        table.add_row(escape(row["model"]), *_cells(row, speed, gpu=gpu))
    console.print(table)
    console.print()
    if best := next((row for row in d["models"] if row["command"]), None):
        console.print(f"Try: [bold]{escape(best['command'])}[/]", soft_wrap=True)
    notes = [
        "estimated, not run: tokens/s of decoding with warm caches. fluent: as fast as people read (5 tokens/s), even"
        " at the low end; maybe: at the high end",
        "the packed copy and a file or two of the download need room on the disk at once",
    ]
    for note in (*notes, *([GPU_CAVEAT] if gpu else [])):
        console.print(f"[yellow]note:[/] {escape(note)}")


def _cells(row: dict[str, Any], speed: Any, *, gpu: bool) -> list[str]:
    sizes = [f"{row['parameters'] / 1e9:.0f}B", format_size(row["download_bytes"]), format_size(row["store_bytes"])]
    if row["tokens_per_second"] is None:
        return [*sizes, *([""] * (3 if gpu else 2)), row["verdict"]]
    ram = row["host_share"] if gpu else row["device_share"]
    shares = [f"{share:.0%}" for share in ([row["device_share"], ram] if gpu else [ram])]
    return [*sizes, *shares, speed(row["tokens_per_second"]), row["verdict"]]
