"""`moe-local plan`: what a model would do on a machine nobody has bought yet, from sizes alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from moe_local.errors import BudgetError
from moe_local.units import format_size, parse_size

from . import options as opt
from .output import Console, echo_json

if TYPE_CHECKING:
    from moe_local.planning.estimate import Estimate, Formats, Machine
    from moe_local.planning.locality import Locality
    from moe_local.planning.sizes import ModelSizes

DEFAULT_CONTEXT = 4096
_WIDTH = 100
_NAMES = {"vram": "VRAM", "ram": "RAM", "pcie": "PCIe", "disk": "disk"}


def plan(
    model: Annotated[
        str,
        typer.Argument(
            help="A checkpoint or store directory, a config.json, a hub id in the Hugging Face cache, or one of the"
            " models that moe-local knows the sizes of, like Qwen/Qwen3-30B-A3B.",
            show_default=False,
        ),
    ],
    profile: Annotated[
        list[str] | None,
        typer.Option(
            help="A machine, like rtx-3060-12gb; may be given again, or as a list with commas. Default: all.",
            rich_help_panel="Machine",
        ),
    ] = None,
    format: Annotated[
        str,
        typer.Option(
            help="Of the experts: int4, int8, nf4, mxfp4, bf16; auto is int4, or mxfp4 for a model that comes in it.",
            rich_help_panel=opt.MODEL,
        ),
    ] = "auto",
    group_size: Annotated[
        int, typer.Option(help="Columns that share a scale in int4: 32, 64 or 128.", rich_help_panel=opt.MODEL)
    ] = 64,
    dense_format: Annotated[
        str,
        typer.Option(help="Of linear layers outside the experts: keep, int8 or int4.", rich_help_panel=opt.MODEL),
    ] = "int8",
    context: Annotated[
        int | None,
        typer.Option(
            help="Tokens of context to reserve memory for. Default: 4096, or the model's.", rich_help_panel=opt.MEMORY
        ),
    ] = None,
    vram: Annotated[
        str | None,
        typer.Option(
            help="GPU memory, like 16GiB, instead of the profile's; 0 leaves the GPU out.", rich_help_panel=opt.MEMORY
        ),
    ] = None,
    ram: Annotated[
        str | None, typer.Option(help="RAM, like 64GiB, instead of the profile's.", rich_help_panel=opt.MEMORY)
    ] = None,
    locality: Annotated[
        str,
        typer.Option(
            help="How unevenly experts are used: auto is the curve measured on the model most alike; uniform, the"
            " pessimist's, gives a cache of a quarter of the experts a quarter of the hits; or a curve's name.",
            rich_help_panel="Machine",
        ),
    ] = "auto",
    as_json: opt.Json = False,
) -> None:
    """Estimate what a model would do on a machine you do not have: what fits where, tokens/s, what limits it.

    Arithmetic on sizes and bandwidths: no weights, no network, under a second. Tokens/s are a range: from nothing
    overlapping to the slowest link alone deciding. On the machine itself, `moe-local inspect` plans exactly.

    Every machine that moe-local knows: `moe-local plan openai/gpt-oss-120b`.

    One in detail, and what more memory would buy: `moe-local plan Qwen/Qwen3-30B-A3B --profile rtx-3060-12gb`.

    The same with other memory and a longer context: `moe-local plan Qwen/Qwen3-30B-A3B --profile rtx-3060-12gb
    --ram 64GiB --context 32768`.
    """
    from moe_local.planning.estimate import Formats
    from moe_local.planning.known_models import find_sizes
    from moe_local.planning.locality import get_locality, nearest

    sizes = find_sizes(model)
    formats = Formats(_expert_format(format, sizes), group_size, dense_format)
    curve = nearest(sizes.experts[0], sizes.top_k) if locality == "auto" else get_locality(locality)
    tokens = min(DEFAULT_CONTEXT, sizes.positions or DEFAULT_CONTEXT) if context is None else context
    machines = _machines(profile, vram, ram)
    rows = [_estimate(machine, sizes, formats, tokens, curve) for machine in machines]
    refused = [row for row in rows if isinstance(row, BudgetError)]
    if len(refused) == len(rows):
        raise refused[0]
    described = describe(sizes, formats, tokens, curve)
    described["machines"] = [_describe_row(*pair) for pair in zip(machines, rows, strict=True)]
    if as_json:
        echo_json(described)
    else:
        _show(described)


def _expert_format(format: str, sizes: ModelSizes) -> str:
    if format != "auto":
        return format
    return "mxfp4" if sizes.quantised == "mxfp4" else "int4"


def _machines(names: Sequence[str] | None, vram: str | None, ram: str | None) -> list[Machine]:
    """The machines asked for, each once; all that are known where none is."""
    from moe_local.planning.estimate import Machine
    from moe_local.planning.machines import get_profile, profiles

    asked = [name.strip() for given in names or () for name in given.split(",") if name.strip()]
    known = [get_profile(name) for name in dict.fromkeys(asked)] or list(profiles().values())
    given_ram = None if ram is None else parse_size(ram)
    given_vram = None if vram is None else parse_size(vram)
    if given_vram and not asked:
        known = [profile for profile in known if profile.vram]
    return [Machine.of(profile, ram=given_ram, vram=given_vram) for profile in known]


Row = tuple["Estimate", dict[str, "Estimate"]]  # the machine's, and with twice as much of each memory


def _estimate(
    machine: Machine, sizes: ModelSizes, formats: Formats, context: int, curve: Locality
) -> Row | BudgetError:
    from moe_local.planning.estimate import doubled, estimate

    try:
        found = estimate(sizes, machine, formats, context, curve)
    except BudgetError as error:
        return error
    return found, {what: estimate(sizes, more, formats, context, curve) for what, more in doubled(machine).items()}


def describe(sizes: ModelSizes, formats: Formats, context: int, curve: Locality) -> dict[str, Any]:
    """What is estimated, sizes in bytes."""
    from moe_local.planning.estimate import dense_bytes, needs_of

    needs = needs_of(sizes, formats, context)
    return {
        "estimate": True,
        "model": sizes.name,
        "architecture": sizes.architecture,
        "parameters": sizes.parameters,
        "active_parameters": sizes.dense_read + sizes.token_set * sizes.expert_parameters,
        "moe_layers": len(sizes.experts),
        "experts": needs.all_experts,
        "experts_per_token": needs.token_set,
        "format": formats.experts,
        "group_size": formats.group if formats.experts == "int4" or formats.dense == "int4" else None,
        "dense_format": formats.dense,
        "context": context,
        "locality": curve.name,
        "record_bytes": needs.slot,
        "expert_bytes": needs.all_experts * needs.slot,
        "dense_bytes": needs.dense,
        "dense_bytes_per_token": dense_bytes(sizes, formats)[1],
        "kv_cache_bytes": needs.kv_cache,
        "workspace_bytes": needs.workspace,
        "notes": list(sizes.notes),
    }


def _describe_row(machine: Machine, row: Row | BudgetError) -> dict[str, Any]:
    """One machine's figures; all keys are there, None where they do not apply or the model does not fit."""
    about: dict[str, Any] = {
        "profile": machine.name,
        "title": machine.title,
        "ram": machine.ram,
        "vram": machine.vram,
        "fits": not isinstance(row, BudgetError),
    }
    if isinstance(row, BudgetError):
        return {**_NOTHING, **about, "refused": row.message, "remedy": row.remedy, "least_bytes": row.minimum}
    found, more = row
    figures = {
        "tokens_per_second": _range(found),
        "bound_by": found.bound_by,
        "device_share": found.device_share,
        "host_share": found.host_share,
        "disk_only_share": 1 - found.memory_share,
        "device_hit_rate": found.device_hits,
        "host_hit_rate": found.host_hits,
        "load_seconds": found.load_seconds,
        "warm_seconds": found.warm_seconds,
        "memory_bytes_per_token": round(found.bytes[machine.device_memory]),
        **{f"{link}_bytes_per_token": round(found.bytes[link]) for link in ("pcie", "disk") if link in found.bytes},
        **{f"tokens_per_second_twice_{what}": _range(twice) for what, twice in more.items()},
    }
    rounded = {key: round(value, 4) if isinstance(value, float) else value for key, value in figures.items()}
    return {**_NOTHING, **about, **rounded}


_NOTHING: dict[str, Any] = dict.fromkeys((
    "profile", "title", "ram", "vram", "fits", "tokens_per_second", "bound_by", "device_share", "host_share",
    "disk_only_share", "device_hit_rate", "host_hit_rate", "memory_bytes_per_token", "pcie_bytes_per_token",
    "disk_bytes_per_token", "load_seconds", "warm_seconds", "tokens_per_second_twice_vram",
    "tokens_per_second_twice_ram", "refused", "remedy", "least_bytes",
))  # fmt: skip


def _range(found: Estimate) -> list[float]:
    return [round(speed, 2) for speed in found.tokens_per_second]


def _show(d: dict[str, Any]) -> None:
    console = Console()
    console = Console(width=min(console.width, _WIDTH) if console.is_terminal else _WIDTH)
    console.print(f"[bold]Estimate[/], from sizes and bandwidths alone: {escape(d['model'])}")
    console.print(_model_line(d), markup=False)
    console.print()
    machines = d["machines"]
    console.print(_detail(machines[0]) if len(machines) == 1 else _table([m for m in machines if m["fits"]]))
    console.print()
    for note in (*_misfits(machines), *_caveats(d), *d["notes"]):
        console.print(f"[yellow]note:[/] {escape(note)}")


def _model_line(d: dict[str, Any]) -> str:
    groups = f" in groups of {d['group_size']}" if d["format"] == "int4" else ""
    billions, active = (f"{d[key] / 1e9:.1f}B" for key in ("parameters", "active_parameters"))
    return (
        f"{billions} parameters, {active} of them for a token. {d['experts']} experts in {d['moe_layers']} layers,"
        f" {d['format']}{groups}: {format_size(d['record_bytes'])} each, {format_size(d['expert_bytes'])} together;"
        f" a token needs {d['experts_per_token']}. Dense part ({d['dense_format']}) {format_size(d['dense_bytes'])},"
        f" KV cache {format_size(d['kv_cache_bytes'])} at {d['context']} tokens, activations"
        f" {format_size(d['workspace_bytes'])}."
    )


def _misfits(machines: Sequence[dict[str, Any]]) -> list[str]:
    """Machines on which the model does not fit, those with the same remedy together."""
    remedies = dict.fromkeys(m["remedy"] for m in machines if not m["fits"])
    names = {remedy: ", ".join(m["profile"] for m in machines if m["remedy"] == remedy) for remedy in remedies}
    return [f"does not fit {names[remedy]}: {remedy}" for remedy in remedies]


def _caveats(d: dict[str, Any]) -> list[str]:
    from moe_local.planning.estimate import PER_LAYER, REACHED, SYSTEM

    return [
        "this is decoding with warm caches. At the low end nothing overlaps, memory gives"
        f" {REACHED:.0%} of its rated bandwidth, and Python takes {PER_LAYER * 1e3} ms a layer, as measured on a slow"
        " core; at the high end the slowest link alone decides",
        f"hit rates are of {d['locality']} under LFRU; {format_size(SYSTEM)} of RAM are left to the system and the"
        " process",
    ]


def _table(machines: Sequence[dict[str, Any]]) -> Table:
    """A row a machine, within 100 columns."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("machine", no_wrap=True)
    for heading in ("tokens/s", "limit", "in VRAM", "in RAM", "VRAM hits", "PCIe/token", "disk/token", "load"):
        table.add_column(heading, justify="right", no_wrap=True)
    for m in machines:
        table.add_row(escape(m["profile"]), *_cells(m))
    return table


def _cells(m: dict[str, Any]) -> list[str]:
    gpu = m["vram"] is not None
    return [
        _speed(m["tokens_per_second"]),
        _NAMES[m["bound_by"]],
        f"{m['device_share']:.0%}" if gpu else "",
        f"{m['host_share'] if gpu else m['device_share']:.0%}",
        f"{m['device_hit_rate']:.0%}" if gpu else "",
        format_size(m["pcie_bytes_per_token"]) if gpu else "",
        format_size(m["disk_bytes_per_token"]),
        _time(m["load_seconds"]),
    ]


def _detail(m: dict[str, Any]) -> Table:
    """One machine, a line for each thing."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for label, value in _lines(m):
        table.add_row(label, escape(value))
    return table


def _lines(m: dict[str, Any]) -> list[tuple[str, str]]:
    gpu = m["vram"] is not None
    memory = f"{format_size(m['vram'])} of VRAM, " if gpu else "no VRAM, "
    shares = f"{m['device_share']:.0%} in {'VRAM' if gpu else 'RAM'}"
    hits = f"{m['device_hit_rate']:.0%} in {'VRAM' if gpu else 'RAM'}"
    carried = [f"{format_size(m['memory_bytes_per_token'])} from {'VRAM' if gpu else 'RAM'}"]
    if gpu:
        shares += f", {m['host_share']:.0%} in RAM (copies of those in VRAM among them)"
        hits += f"; of the others {m['host_hit_rate']:.0%} in RAM"
        carried.append(f"{format_size(m['pcie_bytes_per_token'])} over PCIe")
    carried.append(f"{format_size(m['disk_bytes_per_token'])} from disk")
    return [
        ("machine", f"{m['title']}: {memory}{format_size(m['ram'])} of RAM"),
        ("tokens/s", f"{_speed(m['tokens_per_second'])}, limited by {_NAMES[m['bound_by']]}"),
        ("experts held", f"{shares}, {m['disk_only_share']:.0%} on disk alone"),
        ("experts found", hits),
        ("bytes a token", ", ".join(carried)),
        ("loading", f"{_time(m['load_seconds'])}, and {_time(m['warm_seconds'])} of reading until caches are full"),
        *[(f"twice the {_NAMES[what]}", _gain(m, what)) for what in ("vram", "ram") if m[what] is not None],
    ]


def _gain(m: dict[str, Any], what: str) -> str:
    """What more of one memory would buy."""
    now, then = m["tokens_per_second"], m[f"tokens_per_second_twice_{what}"]
    size = format_size(2 * m[what])
    if then[0] < 1.02 * now[0] and then[1] < 1.02 * now[1]:
        return f"{size}: nothing"
    return f"{size}: {_speed(then)} tokens/s"


def _speed(ends: Sequence[float]) -> str:
    low, high = (f"{end:.0f}" if end >= 10 else f"{end:.1f}" for end in ends)
    return low if low == high else f"{low} to {high}"


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
