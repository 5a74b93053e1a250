"""Pictures of routing made of characters: they fit the console, and say the same where it has no colours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.color import Color
from rich.console import Console as RichConsole
from rich.console import ConsoleOptions, RenderResult
from rich.markup import escape
from rich.measure import Measurement
from rich.segment import Segment
from rich.style import Style
from rich.table import Table

from moe_local.bench.report_reader import (
    Part,
    layer_shares,
    number,
    numbers,
    part,
    parts,
    plain,
    relative_usage,
    routing,
    run_labels,
    runs,
)

from .output import Console

Grid = NDArray[np.float64]
RGB = tuple[int, int, int]

_BARS, _ASCII_BARS = "▁▂▃▄▅▆▇█", "_.-:=+*#"
_SHADES, _ASCII_SHADES = " ░▒▓█", " .:*#"
_SHADE_FROM = (1e-9, 0.5, 1.0, 2.0)  # multiples of uniform use at which a darker shade begins
_COLD, _MEAN, _HOT, _DEAD = (0, 114, 178), (222, 222, 218), (213, 94, 0), (70, 75, 82)
_SPAN = 3.0  # powers of two above and below the mean at which colours end
_MOST_ROWS = 24  # lines of text that a heat map takes at most


def sparkline(values: Sequence[float | None], width: int | None = None, *, ascii_only: bool = False) -> str:
    """Shares, 0 to 1, as one line of bars, a blank where there is none; in at most `width` columns, of neighbours'
    means."""
    bars = _ASCII_BARS if ascii_only else _BARS
    known = np.array([np.nan if (value := number(item)) is None else value for item in values], dtype=float)
    folded = _fold(known[None, :], 1, len(known) if width is None else max(0, width))[0]
    top = len(bars) - 1
    return "".join(" " if np.isnan(v) else bars[round(min(1.0, max(0.0, float(v))) * top)] for v in folded)


def _fold(grid: Grid, height: int, width: int) -> Grid:
    """[rows, columns] in at most [height, width]: each cell the mean of those it stands for, NaN where all are."""
    for axis, most in ((0, height), (1, width)):
        count = grid.shape[axis]
        if count > most:
            edges = np.linspace(0, count, most + 1).astype(int)
            cells = [_mean(grid.take(range(a, b), axis), axis) for a, b in pairwise(edges)]
            grid = np.stack(cells, axis) if cells else grid.take([], axis)
    return grid


def _mean(grid: Grid, axis: int) -> Grid:
    known = ~np.isnan(grid)
    counts = known.sum(axis)
    mean: Grid = np.where(counts > 0, np.where(known, grid, 0).sum(axis) / np.maximum(counts, 1), np.nan)
    return mean


@dataclass(frozen=True)
class HeatMap:
    """Layers down, experts across, folded into the width there is. `usage` [layers, experts] is relative to uniform
    use; NaN where a layer has no such expert. Half blocks in colour, shades without."""

    usage: Grid

    def __rich_measure__(self, console: RichConsole, options: ConsoleOptions) -> Measurement:
        return Measurement(min(8, options.max_width), options.max_width)

    def __rich_console__(self, console: RichConsole, options: ConsoleOptions) -> RenderResult:
        coloured = bool(console.color_system) and not console.no_color and not options.ascii_only
        margin = len(str(max(0, len(self.usage) - 1))) + 1
        width = options.max_width - margin
        if not self.usage.size or width < 1:
            return
        lines = _MOST_ROWS * 2 if coloured else _MOST_ROWS
        cells = _fold(self.usage, lines, width)
        step = 2 if coloured else 1
        for top in range(0, len(cells), step):
            layer = top * len(self.usage) // len(cells)
            yield Segment(f"{layer:>{margin - 1}} ", Style(dim=True) if coloured else None)
            yield from _halves(cells[top : top + 2]) if coloured else _shades(cells[top], options.ascii_only)
            yield Segment.line()
        yield from _legend(coloured, margin, options)


def _halves(pair: Grid) -> RenderResult:
    """One line of text for two layers: the upper in the colour of the character, the lower in that behind it."""
    for column in range(pair.shape[1]):
        upper, lower = (_colour(float(pair[row, column])) if row < len(pair) else None for row in (0, 1))
        if upper is None and lower is None:
            yield Segment(" ")
        elif upper is None:
            yield Segment("▄", Style(color=lower))
        else:
            yield Segment("▀", Style(color=upper, bgcolor=lower))


def _colour(use: float) -> Color | None:
    if np.isnan(use):
        return None
    if use <= 0:
        return Color.from_rgb(*_DEAD)
    strength = max(-1.0, min(1.0, float(np.log2(use)) / _SPAN))
    end = _HOT if strength > 0 else _COLD
    return Color.from_rgb(*(mean + (to - mean) * abs(strength) for mean, to in zip(_MEAN, end, strict=True)))


def _shades(row: Grid, ascii_only: bool) -> RenderResult:
    shades = _ASCII_SHADES if ascii_only else _SHADES
    yield Segment(
        "".join(" " if np.isnan(use) else shades[int(np.searchsorted(_SHADE_FROM, use, "right"))] for use in row)
    )


def _legend(coloured: bool, margin: int, options: ConsoleOptions) -> RenderResult:
    """What the colours or shades mean, as far as there is room."""
    shades = _ASCII_SHADES if options.ascii_only else _SHADES
    entries: list[tuple[str, Color | None, str]]
    if coloured:
        named = (("never", 0.0), ("1/8", 1 / 8), ("mean", 1.0), ("8 times", 8.0))
        entries = [("■", _colour(use), name) for name, use in named]
    else:
        names = ("less", "half", "mean", "twice")
        entries = [(shade, None, name) for shade, name in zip(shades[1:], names, strict=True)]
    room = options.max_width - margin
    yield Segment(" " * margin)
    for mark, colour, name in entries:
        text = f" {name}  "
        if room < len(text) + 1:
            break
        room -= len(text) + 1
        yield Segment(mark, Style(color=colour) if colour else None)
        yield Segment(text)
    yield Segment.line()


def show_routing(report: Mapping[str, Any], console: RichConsole | None = None) -> None:
    """Prints how a report's tokens were routed: a heat map, the balance of the layers, what groups prefer.

    Nothing of what the report does not have.
    """
    console = console or Console()
    routed = routing(report)
    usage = relative_usage(routed)
    if usage.size:
        layers, experts = usage.shape
        console.print(f"[bold]use of experts[/], {layers} layers down, {experts} experts across", highlight=False)
        console.print(HeatMap(usage))
    balance = _balance(report, routed, console)
    if balance.row_count:
        console.print()
        console.print(balance)
    marked = _marked(part(routed.get("groups")), console)
    if marked.row_count:
        console.print()
        console.print(marked)


def _balance(report: Mapping[str, Any], routed: Part, console: RichConsole) -> Table:
    """A row for each measure: mean, range over the layers, and the layers as a sparkline."""
    table = Table(box=None, pad_edge=False)
    table.add_column("of the layers", overflow="fold")
    table.add_column("mean", justify="right", no_wrap=True)
    table.add_column("range", style="dim", no_wrap=True)
    measures = [(label, values) for label, values in _measures(report, routed) if values]
    # Label, mean, range and gaps take their width first; the sparkline has what is left.
    width = console.width - max((len(label) for label, _ in measures), default=0) - 6 - 13 - 3
    if width >= 4:
        table.add_column("first to last", no_wrap=True)
    for label, values in measures:
        cells = [
            escape(_writable(label, console)),
            f"{np.mean(values):.0%}",
            f"{min(values):.0%} to {max(values):.0%}",
        ]
        if width >= 4:
            cells.append(sparkline(values, width, ascii_only=console.options.ascii_only))
        table.add_row(*cells)
    return table


def _measures(report: Mapping[str, Any], routed: Part) -> list[tuple[str, list[float]]]:
    measures = [
        ("entropy of use", numbers(routed.get("entropy"))),
        ("experts never used", numbers(routed.get("dead"))),
        ("experts of half the uses", numbers(routed.get("hot"))),
        ("used by the token before", numbers(routed.get("adjacent_reuse"))),
    ]
    found = runs(report)
    for run, label in zip(found, run_labels(found), strict=True):
        served = layer_shares(part(run.get("layers")))
        measures.append((f"hits, {label}" if len(found) > 1 else "hits", served[0].tolist()))
    return measures


def _marked(groups: Part, console: RichConsole) -> Table:
    """A row for each group of prompts: its tokens and the experts it prefers."""
    table = Table(box=None, pad_edge=False)
    table.add_column("group", overflow="fold", max_width=24)
    table.add_column("tokens", justify="right", no_wrap=True)
    table.add_column("prefers layer.expert (times as often)", overflow="fold")
    names, marked = groups.get("names"), groups.get("marked")
    tokens = numbers(groups.get("tokens"))
    for index, name in enumerate(names if isinstance(names, list) else []):
        experts = parts(marked[index]) if isinstance(marked, list) and index < len(marked) else []
        table.add_row(
            escape(_writable(plain(name, 40), console)),
            f"{tokens[index]:.0f}" if index < len(tokens) else "-",
            ", ".join(filter(None, map(_preferred, experts))),
        )
    return table


def _writable(text: str, console: RichConsole) -> str:
    """The text in characters that the console's encoding has."""
    return text.encode("ascii", "replace").decode() if console.options.ascii_only else text


def _preferred(expert: Part) -> str:
    layer, which, lift = (number(expert.get(name)) for name in ("layer", "expert", "lift"))
    if layer is None or which is None:
        return ""
    return f"{layer:.0f}.{which:.0f}" + ("" if lift is None else f" ({lift:.1f})")
