"""The bench's results as tables in the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from moe_local.bench import figures, tables
from moe_local.bench.report_reader import part, run_labels
from moe_local.units import format_size

from .output import Console
from .terminal import show_routing

if TYPE_CHECKING:
    from moe_local.bench.compare import Compared

_SWEEP = {
    "decode_tokens_per_second": "decode t/s",
    "prefill_tokens_per_second": "prefill t/s",
    "time_to_first_token": "first",
    "inter_token_p95": "p95",
    "decode_hit_rate": "hits",
    "bytes_read_per_token": "read",
    "stall_share": "stalled",
}


def show(report: Mapping[str, Any]) -> None:
    """What was measured, one run in full or a sweep with a row each; or what a replay found. Then the routing."""
    console = Console()
    console.print(escape(_head(report)), style="bold")
    for left in part(report.get("replay")).get("left_out", ()):
        console.print(f"[yellow]note:[/] {left['capacity']:.1%} is left out: {escape(left['why'])}")
    found = report.get("runs", ())
    if len(found) > 1:
        console.print(_sweep(found))
        return
    short = [table for table in tables.details(report) if table.title in ("Links", "Memory")]
    for table in (*tables.headline(report), *short):
        console.print(_rendered(table))
        console.print()
    if found:
        console.print(_cold(found[0]))
    show_routing(report, console)


def _head(report: Mapping[str, Any]) -> str:
    model, machine = report["model"], report["machine"]
    layers = f"{model['layers']} layers of {max(model['experts'])} experts, {model['top_k']} a token"
    if report["kind"] == "routing":
        told = report["strategies"]
        return f"{model['name']}: {told['tokens']} tokens, {told['batch']} routed together, through {layers}"
    if report["kind"] == "replay":
        return f"{model['name']}: {report['replay']['tokens']} tokens through {layers}"
    workload = model["workload"]
    work = f"{workload['prompts']} prompts, {workload['new_tokens']} new tokens each"
    hardware = f"{machine['cores']} cores, {machine['cpu']}, {', '.join(machine['gpus']) or 'no GPU'}"
    return (
        f"{model['name']}: {layers}, {model['format']}, {format_size(model['record_bytes'])} each;"
        f" {work}, {workload['repeat']} timed passes; {hardware}"
    )


def _rendered(table: figures.Table) -> Table:
    drawn = _table(table.head, words=table.words)
    drawn.title, drawn.caption = escape(table.title), escape(table.note)
    drawn.title_justify = drawn.caption_justify = "left"
    for row in table.lines:
        drawn.add_row(*map(escape, row))
    return drawn


def _table(titles: Iterable[str], *, words: bool = False) -> Table:
    """The first column names, the others hold figures, or `words`."""
    drawn = Table(box=None, pad_edge=False)
    for number, title in enumerate(titles):
        if number == 0:
            drawn.add_column(escape(title), overflow="fold", min_width=14)
        else:
            drawn.add_column(escape(title), justify="left" if words else "right", overflow="fold")
    return drawn


def _cold(run: Mapping[str, Any]) -> str:
    hits, misses = sum(run["cold"]["hits"]), sum(run["cold"]["misses"])
    return f"hits in the warm-up pass, from a cold start: {hits / max(1, hits + misses):.1%}\n"


def _sweep(found: Sequence[Mapping[str, Any]]) -> Table:
    drawn = _table(("configuration", *_SWEEP.values(), "RAM"))
    for label, run in zip(run_labels(found), found, strict=True):
        if "error" in run:
            drawn.add_row(escape(label), "failed")
            continue
        cells = [figures.said(part(run["summary"][name]).get("median"), tables.METRICS[name][1]) for name in _SWEEP]
        drawn.add_row(escape(label), *cells, format_size(run["memory"]["ram"]["peak"]))
    return drawn


def show_comparison(compared: Compared) -> None:
    """A row for each metric of each configuration, after what else differs."""
    console, found = Console(), compared.comparisons
    for what, before, after in compared.differences:
        console.print(f"[yellow]note:[/] {escape(f'{what}: {before}, then {after}')}")
    colours = {"better": "green", "worse": "red"}
    drawn = _table(("metric", "before", "after", "ratio", "verdict"))
    for config in dict.fromkeys(one.config for one in found):
        drawn.add_row(f"[bold]{escape(config or 'all runs')}[/]")
        for one in found:
            if one.config == config:
                label, format_ = tables.METRICS.get(one.metric, (one.metric, figures.figure))
                ratio = "-" if one.ratio is None else f"{one.ratio:.3f}"
                ratio += "" if one.interval is None else f" ({one.interval[0]:.3f} to {one.interval[1]:.3f})"
                cells = (format_(one.before), format_(one.after), ratio, one.verdict)
                drawn.add_row(label, *cells, style=colours.get(one.verdict))
    console.print(drawn)
