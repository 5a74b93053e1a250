"""Pictures of time: one token's timeline, and the speed of each configuration."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path

from moe_local.bench.report_reader import Part, Report, model_name, number, part, parts, run_labels, runs

from . import Picture
from .theme import Theme, drawable, dress, mixed, new_figure, wrapped

_LANES = {"compute": "compute", "stall": "stall", "read": "reads", "upload": "uploads"}
_ROWS = 12  # spans at once in a lane that get a row of their own
_SPEED = "decode_tokens_per_second"


@dataclass(frozen=True)
class Span:
    """Milliseconds from the token's start."""

    kind: str
    layer: int
    begin: float
    end: float


Stack = tuple[list[tuple[Span, int]], int]  # each span with its row, and the number of rows


def spans_of(run: Part) -> list[Span]:
    """In order of their beginning."""
    found = []
    for span in parts(part(run.get("timeline")).get("spans")):
        begin, end, kind = number(span.get("begin")), number(span.get("end")), span.get("kind")
        if begin is not None and end is not None and end >= begin and kind in _LANES:
            found.append(Span(str(kind), int(number(span.get("layer")) or 0), begin * 1e3, end * 1e3))
    return sorted(found, key=lambda span: (span.begin, span.end))


def timelines(report: Report) -> Iterator[Picture]:
    """One token of each run."""
    found = runs(report)
    labels = run_labels(found) if len(found) > 1 else [model_name(report)]
    for index, (run, label) in enumerate(zip(found, labels, strict=False), start=1):
        spans = spans_of(run)
        if spans and spans[-1].end > 0:
            yield Picture(
                f"timeline-{index}" if len(found) > 1 else "timeline",
                "One token, moment by moment",
                "Time runs to the right, layers alternate in strength of colour: where the stall lane is filled, the"
                " model waited for the reads and uploads below it.",
                partial(_timeline, spans, label),
            )


def _timeline(spans: list[Span], subtitle: str, theme: Theme) -> Figure:
    colours = {"compute": theme.good, "stall": theme.bad, "read": theme.links[0], "upload": theme.links[1]}
    lanes = [kind for kind in _LANES if any(span.kind == kind for span in spans)]
    rows = {kind: stacked([span for span in spans if span.kind == kind]) for kind in lanes}
    heights = {kind: 1.0 if rows[kind][1] == 1 else min(2.4, 0.7 + 0.25 * rows[kind][1]) for kind in lanes}
    figure = new_figure(theme, 1.6 + 0.55 * sum(heights.values()), "One token, moment by moment")
    axes = figure.subplots()
    dress(axes, theme, drawable(subtitle), grid="x")
    end = max(span.end for span in spans)
    axes.set_xlim(0, end)
    top, centres = 0.0, []
    for kind in lanes:
        tints = (colours[kind], mixed(colours[kind], theme.page, 0.55))
        _lane(axes, rows[kind], top + 0.1, heights[kind] - 0.2, tints)
        centres.append(top + heights[kind] / 2)
        top += heights[kind]
    axes.set_ylim(top, 0)
    axes.set_yticks(centres, labels=[_lane_label(kind, spans) for kind in lanes])
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("milliseconds")
    _layer_marks(axes, spans, end, theme)
    return figure


def _lane_label(kind: str, spans: Sequence[Span]) -> str:
    busy = covered([span for span in spans if span.kind == kind])
    return f"{_LANES[kind]}\n{busy:.3g} ms"


def covered(spans: Sequence[Span]) -> float:
    """Milliseconds during which at least one of the spans, sorted by beginning, runs."""
    total, until = 0.0, 0.0
    for span in spans:
        total += max(0.0, span.end - max(until, span.begin))
        until = max(until, span.end)
    return total


def stacked(spans: list[Span]) -> Stack:
    """A row for each span so that none covers another while there are rows left, and the number of rows."""
    slack = max((span.end for span in spans), default=0.0) / 5000  # clocks are not that exact
    ends: list[float] = []
    placed = []
    for span in spans:
        free = next((row for row, end in enumerate(ends) if end <= span.begin + slack), None)
        if free is None and len(ends) < _ROWS:
            free = len(ends)
            ends.append(0.0)
        row = free if free is not None else min(range(len(ends)), key=ends.__getitem__)
        ends[row] = max(ends[row], span.end)
        placed.append((span, row))
    return placed, max(1, len(ends))


def _lane(axes: Axes, stack: Stack, top: float, height: float, tints: tuple[str, str]) -> None:
    """All rectangles of a colour are one path: a token of a large model has thousands."""
    placed, rows = stack
    shortest = axes.get_xlim()[1] / 2000  # still visible
    for odd, colour in enumerate(tints):
        chosen = [(span, row) for span, row in placed if span.layer % 2 == odd]
        if not chosen:
            continue
        corners = []
        for span, row in chosen:
            left, right = span.begin, max(span.end, span.begin + shortest)
            low, high = top + height * row / rows, top + height * (row + (1 if rows == 1 else 0.85)) / rows
            corners.append([(left, low), (right, low), (right, high), (left, high), (left, low)])
        codes = [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY] * len(corners)
        path = Path(np.array(corners).reshape(-1, 2), codes)
        axes.add_patch(PathPatch(path, facecolor=colour, linewidth=0))


def _layer_marks(axes: Axes, spans: list[Span], end: float, theme: Theme) -> None:
    """Numbers of layers along the top, where their computing starts and there is room."""
    starts: dict[int, float] = {}
    for span in spans:
        if span.kind in ("compute", "stall"):
            starts.setdefault(span.layer, span.begin)
    shown: list[tuple[float, int]] = []
    for layer, at in sorted(starts.items(), key=lambda item: item[1]):
        if at <= end and (not shown or at - shown[-1][0] >= end / 22):
            shown.append((at, layer))
    if not shown:
        return
    above = axes.secondary_xaxis("top")
    above.set_xticks([at for at, _ in shown], labels=[str(layer) for _, layer in shown])
    above.set_xlabel("layer", color=theme.text)
    above.tick_params(colors=theme.muted, labelcolor=theme.text, labelsize=9)
    above.spines["top"].set_color(theme.grid)


def sweep(report: Report) -> Iterator[Picture]:
    """Tokens a second of every configuration, where there are several."""
    found = runs(report)
    speeds = [part(part(run.get("summary")).get(_SPEED)) for run in found]
    bars = [
        (label, median, number(speed.get("low")), number(speed.get("high")))
        for label, speed in zip(run_labels(found), speeds, strict=True)
        if (median := number(speed.get("median"))) is not None
    ]
    if len(bars) > 1:
        yield Picture(
            "sweep",
            "Speed of each configuration",
            "A bar is the median speed of decoding, its whiskers the slowest and the fastest repetition.",
            partial(_draw_sweep, bars, model_name(report)),
        )


Bar = tuple[str, float, float | None, float | None]  # label, median, low, high


def _draw_sweep(bars: list[Bar], subtitle: str, theme: Theme) -> Figure:
    figure = new_figure(theme, 1.5 + 0.42 * len(bars), "Speed of each configuration")
    axes = figure.subplots()
    dress(axes, theme, drawable(subtitle), grid="x")
    places = np.arange(len(bars))
    medians = np.array([median for _, median, _, _ in bars])
    lows = np.array([median if low is None else min(low, median) for _, median, low, _ in bars])
    highs = np.array([median if high is None else max(high, median) for _, median, _, high in bars])
    axes.barh(places, medians, height=0.62, color=mixed(theme.lines[0], theme.page, 0.65))
    axes.errorbar(
        medians,
        places,
        xerr=[medians - lows, highs - medians],
        fmt="none",
        ecolor=theme.text,
        capsize=3,
        linewidth=1.2,
    )
    for place, median, high in zip(places, medians, highs, strict=True):
        axes.annotate(
            f"{median:.3g}",
            (high, place),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=theme.text,
        )
    axes.set_yticks(places, labels=[wrapped(drawable(label)) for label, *_ in bars])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(bars) - 0.5, -0.5)
    axes.set_xlim(0, max(float(highs.max()), 1e-9) * 1.1)
    axes.set_xlabel("tokens a second while decoding")
    return figure
