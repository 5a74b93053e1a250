"""Pictures of where a router sends tokens: which experts, and how soon the same one again."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, LinearSegmentedColormap, LogNorm, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from moe_local.bench.report_reader import (
    Part,
    Report,
    matrix,
    model_name,
    numbers,
    padded,
    part,
    relative_usage,
    routing,
    run_labels,
    runs,
)

from . import Picture
from .theme import BESIDE_LEGEND, BLUE, VERMILLION, Theme, count_ticks, drawable, dress, legend, new_figure, percent

_SPAN = 8.0  # colours end at this multiple of uniform use, and at its inverse
_FINE = 1600  # pixels across an embedded image: cells then stay sharp however a viewer scales it


def heat_maps(report: Report) -> Iterator[Picture]:
    """Use of every expert; of a run also which experts are in the fastest memory at its end."""
    found = runs(report)
    labels = run_labels(found) if len(found) > 1 else [model_name(report)]
    drawn = False
    for index, (run, label) in enumerate(zip(found, labels, strict=False), start=1):
        usage = relative_usage(part(run.get("routing")) or routing(report))
        resident = padded(matrix(run.get("resident")))
        if usage.size and resident.shape == usage.shape:
            drawn = True
            yield _heat_map(f"heat-map-{index}" if len(found) > 1 else "heat-map", usage, resident, label)
    usage = relative_usage(routing(report))
    if usage.size and not drawn:
        yield _heat_map("heat-map", usage, None, model_name(report))


def _heat_map(name: str, usage: NDArray[np.float64], resident: NDArray[np.float64] | None, subtitle: str) -> Picture:
    reading = (
        "A row is a layer, a cell an expert: orange ones are used more than their layer's average, blue ones less"
    )
    if resident is not None:
        reading += "; below, orange ones are used more than average and were not in the cache at the end"
    return Picture(name, "Which experts are used", f"{reading}.", partial(_draw_heat_map, usage, resident, subtitle))


def _draw_heat_map(
    usage: NDArray[np.float64], resident: NDArray[np.float64] | None, subtitle: str, theme: Theme
) -> Figure:
    panels = 1 if resident is None else 2
    height = float(np.clip(usage.shape[0] * 0.25, 1.0, 4.2))
    figure = new_figure(theme, 1.1 + panels * (height + 0.55), "Which experts are used")
    grid = figure.subplots(
        panels, 2, squeeze=False, width_ratios=[1, 0.018], sharex="col", gridspec_kw={"hspace": 0.02}
    )
    _usage_panel(grid[0, 0], grid[0, 1], usage, theme)
    grid[0, 0].set_title(drawable(subtitle, BESIDE_LEGEND), loc="left", color=theme.muted, fontsize=9.5)
    if resident is not None:
        _resident_panel(grid[1, 0], usage, resident, theme)
        grid[1, 1].set_axis_off()
    count_ticks(grid[-1, 0], "x", usage.shape[1], 17, binary=True)
    grid[-1, 0].set_xlabel("expert")
    return figure


def _usage_panel(axes: Axes, bar: Axes, usage: NDArray[np.float64], theme: Theme) -> None:
    colours, norm = _diverging(theme), LogNorm(1 / _SPAN, _SPAN)
    cells = colours(norm(np.clip(np.nan_to_num(usage, nan=1.0), 1 / _SPAN, _SPAN)))[..., :3]
    cells[usage == 0] = to_rgb(theme.muted)
    _cells(axes, cells, np.isnan(usage), theme)
    if (usage == 0).any():
        legend(axes, theme, [Patch(color=theme.muted, label="never used")], above=True)
    scale = axes.figure.colorbar(ScalarMappable(norm, colours), cax=bar)
    scale.set_ticks([1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8], labels=["1/8", "1/4", "1/2", "mean", "2 times", "4", "8"])
    scale.ax.minorticks_off()
    scale.ax.tick_params(colors=theme.muted, labelcolor=theme.text, labelsize=9)
    scale.outline.set_visible(False)


def _resident_panel(axes: Axes, usage: NDArray[np.float64], resident: NDArray[np.float64], theme: Theme) -> None:
    kinds = [
        ((resident > 0) & (usage >= 1), theme.good, "busy, cached"),
        ((resident > 0) & (usage < 1), theme.fair, "idle, cached"),
        ((resident == 0) & (usage >= 1), theme.bad, "busy, not cached"),
        ((resident == 0) & (usage < 1), theme.empty, "idle, not cached"),
    ]
    cells = np.zeros((*usage.shape, 3))
    for where, colour, _ in kinds:
        cells[where] = to_rgb(colour)
    _cells(axes, cells, np.isnan(usage), theme)
    legend(axes, theme, [Patch(color=colour, label=label) for _, colour, label in kinds], above=True)
    axes.set_title("in the cache at the end", loc="left", color=theme.muted, fontsize=9.5)


def _cells(axes: Axes, cells: NDArray[np.float64], absent: NDArray[np.bool_], theme: Theme) -> None:
    """Cells [layers, experts, RGB] as an image; nothing where `absent`."""
    layers, experts = absent.shape
    cells = cells.copy()
    cells[absent] = to_rgb(theme.page)
    across, down = -(-_FINE // experts), max(1, -(-800 // layers))
    image = (cells * 255).round().astype(np.uint8).repeat(min(down, 32), axis=0).repeat(min(across, 32), axis=1)
    dress(axes, theme)
    axes.imshow(image, extent=(-0.5, experts - 0.5, layers - 0.5, -0.5), aspect="auto", interpolation="none")
    for spine in axes.spines.values():
        spine.set_visible(False)
    count_ticks(axes, "y", layers, 12)
    axes.set_ylabel("layer")


def _diverging(theme: Theme) -> Colormap:
    """Blue over the page's own tone to orange."""
    middle = "#f4f4f2" if theme.name == "light" else "#262c33"
    ends = (BLUE, VERMILLION) if theme.name == "light" else ("#3aa0e8", "#ff8a33")
    return LinearSegmentedColormap.from_list("use", [ends[0], middle, ends[1]])


def reuse(report: Report) -> Iterator[Picture]:
    """How many other experts a layer used before it came back to the same one."""
    found = part(routing(report).get("reuse_distance"))
    distance, share = numbers(found.get("distance")), numbers(found.get("share"))
    if len(distance) == len(share) and sum(share) > 0:
        yield Picture(
            "reuse",
            "How soon an expert is used again",
            "The upper line is what a least-recently-used cache of so many experts a layer would hit; it ends below"
            " 100% because the first use of an expert never hits.",
            partial(_draw_reuse, found, model_name(report)),
        )


def _draw_reuse(found: Part, subtitle: str, theme: Theme) -> Figure:
    order = np.argsort(numbers(found.get("distance")), kind="stable")
    distance = np.array(numbers(found.get("distance")))[order]
    share = np.array(numbers(found.get("share")))[order]
    figure = new_figure(theme, 5.2, "How soon an expert is used again")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    total = share.cumsum()
    first = f"{max(0.0, 1 - float(total[-1])):.1%} are first uses"
    dress(above, theme, " · ".join(filter(None, [drawable(subtitle), first])), grid="y")
    dress(below, theme, grid="y")
    above.step(distance, total, where="mid", color=theme.lines[0], linewidth=2.2)
    above.fill_between(distance, total, step="mid", color=theme.lines[0], alpha=0.15, linewidth=0)
    above.axhline(float(total[-1]), color=theme.muted, linewidth=1, linestyle=(0, (1, 2)))
    above.set_ylim(0, 1.02)
    above.set_ylabel("uses up to here")
    below.bar(distance, share, width=0.8 if len(distance) <= 100 else 1.0, color=theme.lines[0], linewidth=0)
    below.set_ylabel("share of uses")
    below.set_xlabel("other experts of the layer used in between")
    below.set_xlim(float(distance[0]) - 0.6, float(distance[-1]) + 0.6)
    percent(above, "y")
    percent(below, "y")
    count_ticks(below, "x", int(distance[-1]) + 1, 17, binary=True)
    return figure
