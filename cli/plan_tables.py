"""What `moe-local plan` prints: from the fields of its `--json`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from moe_local.planning.estimate import LAUNCH, PER_LAYER, REACHED, ROUTER_WAIT
from moe_local.planning.machines import SYSTEM
from moe_local.units import format_size

from .output import Console

WIDTH = 100
GPU_CAVEAT = (
    "GPUs are taken to have Triton's kernels. Once a layer the host waits for the router, at best"
    f" {ROUTER_WAIT[0] * 1e3:g} ms, at worst {ROUTER_WAIT[1] * 1e3:g} (others' figures), and a launch takes"
    f" {LAUNCH * 1e6:.0f} us (reckoned): no GPU has measured this yet"
)
_NAMES = {"vram": "VRAM", "ram": "RAM", "pcie": "PCIe", "disk": "disk", "host": "host"}


def show(d: dict[str, Any]) -> None:
    console = Console()
    console = Console(width=min(console.width, WIDTH) if console.is_terminal else WIDTH)
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
    return [
        *([GPU_CAVEAT] if any(m["vram"] is not None for m in d["machines"]) else []),
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
        speed(m["tokens_per_second"]),
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
        ("tokens/s", f"{speed(m['tokens_per_second'])}, limited by {_NAMES[m['bound_by']]}"),
        *([("without Triton", _decoding(m))] if m["tokens_per_second_decoding"] else []),
        ("experts held", f"{shares}, {m['disk_only_share']:.0%} on disk alone"),
        ("experts found", hits),
        ("bytes a token", ", ".join(carried)),
        ("loading", f"{_time(m['load_seconds'])}, and {_time(m['warm_seconds'])} of reading until caches are full"),
        *[(f"twice the {_NAMES[what]}", _gain(m, what)) for what in ("vram", "ram") if m[what] is not None],
    ]


def _decoding(m: dict[str, Any]) -> str:
    return f"{speed(m['tokens_per_second_decoding'])} tokens/s: weights are decoded at every use"


def _gain(m: dict[str, Any], what: str) -> str:
    """What more of one memory would buy."""
    now, then = m["tokens_per_second"], m[f"tokens_per_second_twice_{what}"]
    size = format_size(2 * m[what])
    if then[0] < 1.02 * now[0] and then[1] < 1.02 * now[1]:
        return f"{size}: nothing"
    return f"{size}: {speed(then)} tokens/s"


def speed(ends: Sequence[float]) -> str:
    low, high = (f"{end:.0f}" if end >= 10 else f"{end:.1f}" for end in ends)
    return low if low == high else f"{low} to {high}"


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
