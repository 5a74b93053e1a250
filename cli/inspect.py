"""`moe-local inspect`: what a model is and what would fit, before anything is loaded."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from moe_local.units import format_size, parse_budget

from . import options as opt
from .output import Console, echo_json

if TYPE_CHECKING:
    from moe_local.planning.plan_load import LoadPlan


def inspect(
    model: opt.Model = None,
    profile: Annotated[
        str | None,
        typer.Option(help="Plan for another machine's memory, like rtx-3060-12gb (`moe-local doctor` lists them)."),
    ] = None,
    as_json: opt.Json = False,
    *,
    flags: opt.LoadFlags,
) -> None:
    """Show what a model takes and how the plan would place it. Reads headers only.

    Example: `moe-local inspect Qwen/Qwen3-30B-A3B --ram 16GiB`.
    """
    from moe_local.planning.machines import get_profile

    from .load import resolve

    machine = get_profile(profile) if profile is not None else None
    if machine is not None:
        ram = parse_budget(flags.ram or "100%", lambda: machine.ram)
        vram = parse_budget(flags.vram or "100%", lambda: machine.vram)
        flags = replace(flags, ram=str(ram), vram=str(vram) if vram else None)
    options = replace(flags.options(), other_machine=machine is not None)
    found = resolve(model)
    from moe_local.planning.plan_load import plan_load

    described = describe(plan_load(found, options))
    process = "interpreter and libraries"
    if machine is not None:
        described["device"] = machine.title
        process = f"the system, {process}"
    if as_json:
        echo_json(described)
    else:
        _show(described, process)


def describe(load_plan: LoadPlan) -> dict[str, Any]:
    """Everything `inspect` says, sizes in bytes."""
    plan, needs, catalog = load_plan.plan, load_plan.plan.needs, load_plan.catalog
    return {
        "model": str(load_plan.checkpoint.directory),
        "architecture": type(load_plan.skeleton).__name__,
        "dtype": str(load_plan.dtype).removeprefix("torch."),
        "device": str(load_plan.device),
        "context": load_plan.context,
        "checkpoint_bytes": load_plan.checkpoint.total_bytes,
        "moe_layers": len(catalog.layers),
        "experts": needs.all_experts,
        "experts_per_token": needs.token_set,
        "expert_format": load_plan.expert_format,
        "record_bytes": needs.slot,
        "expert_bytes": catalog.expert_bytes,
        "dense_bytes": needs.dense,
        "embedding_bytes_on_disk": needs.embedding_rows_on_disk,
        "kv_cache_bytes": needs.kv_cache,
        "workspace_bytes": needs.workspace,
        "process_bytes": plan.ram_overhead,
        "ram_budget": plan.ram,
        "ram_planned": plan.ram_used,
        "vram_budget": plan.vram,
        "vram_planned": plan.vram_used,
        "device_slots": list(plan.device_slots),
        "device_slots_for_prompts": list(plan.capacity(load_plan.context).kept),
        "host_slots": None if plan.host_slots is None else list(plan.host_slots),
        "share_of_experts": round(plan.share, 4),
        "budget_for_one_token": plan.useful_minimum,
        "notes": list(load_plan.notes),
    }


def _show(d: dict[str, Any], process: str) -> None:
    console = Console()
    table = Table(title=escape(d["model"]), title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column()
    for label, value in _rows(d, process):
        table.add_row(label, escape(value))
    console.print(table)
    for note in d["notes"]:
        console.print(f"[yellow]note:[/] {escape(note)}")


def _rows(d: dict[str, Any], process: str) -> list[tuple[str, str]]:
    tier = "VRAM" if d["vram_budget"] is not None else "RAM"
    slots = d["device_slots"]
    spread = f"{min(slots)}" if min(slots) == max(slots) else f"{min(slots)} to {max(slots)}"
    left = d["embedding_bytes_on_disk"]
    embeddings = f", embeddings of {format_size(left)} left on the disk and read row by row" if left else ""
    rows = [
        ("architecture", f"{d['architecture']}, {d['dtype']} on {d['device']}"),
        ("checkpoint", format_size(d["checkpoint_bytes"])),
        (
            "experts",
            f"{d['experts']} in {d['moe_layers']} layers, {d['expert_format']}, {format_size(d['record_bytes'])}"
            f" each, {format_size(d['expert_bytes'])} together; one token needs {d['experts_per_token']}",
        ),
        ("dense weights", format_size(d["dense_bytes"]) + embeddings),
        ("KV cache", f"{format_size(d['kv_cache_bytes'])} at {d['context']} tokens"),
        ("activations", format_size(d["workspace_bytes"])),
        ("process", f"{format_size(d['process_bytes'])} ({process})"),
        ("RAM budget", f"{format_size(d['ram_budget'])}, of which {format_size(d['ram_planned'])} planned"),
    ]
    if d["vram_budget"] is not None:
        planned = format_size(d["vram_planned"])
        rows.append(("VRAM budget", f"{format_size(d['vram_budget'])}, of which {planned} planned"))
    fewer = sum(d["device_slots_for_prompts"])
    long = f"; {fewer} while a prompt is read, which takes memory" if fewer < sum(slots) else ""
    rows.append((f"experts in {tier}", f"{sum(slots)} ({d['share_of_experts']:.0%}), {spread} a layer{long}"))
    if d["host_slots"] is not None:
        rows.append(("experts in RAM", f"{sum(d['host_slots'])} ({sum(d['host_slots']) / d['experts']:.0%})"))
    rows.append(("caching pays from", f"{format_size(d['budget_for_one_token'])} of {tier}"))
    return rows
