"""The bench's results as tables in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from moe_local.bench.report import METRICS, SHARES
from moe_local.config import format_size

if TYPE_CHECKING:
    from moe_local.bench.compare import Comparison

_SWEEP = (
    "decode_tokens_per_second",
    "prefill_tokens_per_second",
    "time_to_first_token",
    "inter_token_p95",
    "decode_hit_rate",
    "bytes_read_per_token",
    "stall_share",
)


def show_live(report: Mapping[str, Any]) -> None:
    """One run in full, or several as a table of one row each."""
    console = Console(highlight=False)
    _head(console, report)
    runs = report["runs"]
    if len(runs) > 1:
        console.print(_sweep(runs))
        return
    from .terminal import show_routing

    console.print(_run(runs[0]))
    console.print(_links(runs[0]))
    show_routing(report, console)


def _head(console: Console, report: Mapping[str, Any]) -> None:
    model, machine = report["model"], report["machine"]
    workload = model["workload"]
    console.print(
        f"[bold]{escape(model['name'])}[/]: {sum(model['experts'])} experts in {model['layers']} layers,"
        f" {model['format']}, {format_size(model['record_bytes'])} each, {model['top_k']} a token and layer"
    )
    console.print(
        f"{workload['prompts']} prompts, {workload['new_tokens']} new tokens each, {workload['repeat']} timed passes;"
        f" {machine['cores']} cores, {machine['cpu']}, {escape(', '.join(machine['gpus']) or 'no GPU')}"
    )


def _run(run: Mapping[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    table.add_column("median", justify="right")
    table.add_column("range", style="dim")
    for metric, spread in run["summary"].items():
        low, high = _value(metric, spread["low"]), _value(metric, spread["high"])
        table.add_row(METRICS[metric][0], _value(metric, spread["median"]), f"{low} to {high}")
    cold = run["cold"]
    lookups = sum(cold["hits"]) + sum(cold["misses"])
    table.add_row("hits from a cold start", f"{sum(cold['hits']) / max(1, lookups):.1%}", "the warm-up pass")
    for tier, memory in run["memory"].items():
        if memory is not None:
            share = f"{format_size(memory['planned'])} planned of a budget of {format_size(memory['budget'])}"
            table.add_row(f"peak {tier.upper()}", format_size(memory["peak"]), share)
    if run["energy_joules_per_token"] is not None:
        table.add_row("processor's energy a token", f"{run['energy_joules_per_token']:.3g} J", "")
    return table


def _links(run: Mapping[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in ("link", "moved", "busy", "achieved", "measured"):
        table.add_column(title, justify="left" if title == "link" else "right")
    for name, link in run["links"].items():
        table.add_row(
            name,
            format_size(link["bytes"]),
            f"{link['seconds']:.2f} s",
            _speed(link["gb_per_second"]),
            _speed(link["measured_gb_per_second"]),
        )
    return table


def _speed(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} GB/s"


def _sweep(runs: Sequence[Mapping[str, Any]]) -> Table:
    swept = [name for name in runs[0]["config"] if len({str(run["config"][name]) for run in runs}) > 1]
    table = Table(box=None, pad_edge=False)
    for name in swept:
        table.add_column(name)
    for metric in _SWEEP:
        table.add_column(METRICS[metric][0], justify="right")
    table.add_column("peak RAM", justify="right")
    for run in runs:
        cells = [_setting(name, run["config"][name]) for name in swept]
        if "error" in run:
            table.add_row(*cells, f"[red]{escape(run['error'])}[/]")
            continue
        values = [_value(metric, run["summary"][metric]["median"]) for metric in _SWEEP]
        table.add_row(*cells, *values, format_size(run["memory"]["ram"]["peak"]))
    return table


def _setting(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if name in ("ram", "vram"):
        return format_size(value)
    return f"{value:.0%}" if name == "experts" else str(value)


def _value(metric: str, value: float) -> str:
    if metric in SHARES:
        return f"{value:.1%}"
    if metric == "bytes_read_per_token":
        return format_size(value)
    return f"{value:.1f}" if value >= 10 else f"{value:.3g}"


def show_replay(report: Mapping[str, Any]) -> None:
    """Policies down, capacities across."""
    from .terminal import show_routing

    console = Console(highlight=False)
    found = report["replay"]
    model = report["model"]
    console.print(
        f"[bold]{escape(model['name'])}[/]: {found['tokens']} tokens, {model['layers']} layers of {model['experts'][0]}"
        f" experts, {model['top_k']} a token; share of needed experts that the fastest tier holds"
    )
    for scope in dict.fromkeys(result["scope"] for result in found["results"]):
        console.print(_replays([r for r in found["results"] if r["scope"] == scope], scope))
    show_routing(report, console)


def _replays(results: Sequence[Mapping[str, Any]], scope: str) -> Table:
    capacities = list(dict.fromkeys(result["capacity"] for result in results))
    predicted = any(result["tokens_per_second"] for result in results)
    table = Table(box=None, pad_edge=False)
    table.add_column("each layer its share" if scope == "layer" else "one global share")
    for capacity in capacities:
        table.add_column(
            f"{capacity:.4g}".rstrip("0").rstrip(".") if capacity > 1 else f"{capacity:.1%}", justify="right"
        )
    for policy in dict.fromkeys(result["policy"] for result in results):
        row = {result["capacity"]: result for result in results if result["policy"] == policy}
        table.add_row(policy, *[f"{row[capacity]['hit_rate']:.1%}" for capacity in capacities])
        if predicted:
            cells = [_predicted(row[capacity]["tokens_per_second"]) for capacity in capacities]
            table.add_row("  tokens/s", *cells, style="dim")
    return table


def _predicted(pair: Sequence[float] | None) -> str:
    return "does not fit" if pair is None else f"{pair[0]:.3g} to {pair[1]:.3g}"


def show_comparison(found: Sequence[Comparison]) -> None:
    """A row for each metric of each configuration."""
    table = Table(box=None, pad_edge=False)
    for title in ("configuration", "metric", "before", "after", "ratio", "verdict"):
        table.add_column(title, justify="right" if title in ("before", "after", "ratio") else "left")
    colours = {"better": "green", "worse": "red"}
    for one in found:
        ratio = "-" if one.ratio is None else f"{one.ratio:.3f}"
        cells = [_value(one.metric, one.before), _value(one.metric, one.after), ratio, one.verdict]
        title = METRICS.get(one.metric, (one.metric, True))[0]
        table.add_row(escape(one.config), title, *cells, style=colours.get(one.verdict))
    Console(highlight=False).print(table)
