"""Pictures of routing strategies: what of their experts a cache would hold."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
from matplotlib.figure import Figure

from moe_local.bench.report_reader import ORACLE, Report, hit_rate, hits_of, model_name, plain, strategies

from . import Picture
from .theme import Theme, drawable, dress, legend, new_figure, percent


def by_strategy(report: Report) -> Iterator[Picture]:
    """A group of bars for each strategy that routes tokens alone: the hit rate at each capacity."""
    if hits_of(strategies(report))[1]:
        yield Picture(
            "strategies",
            "Hits under each routing strategy",
            "A group is a strategy, a bar in it a cache size: the higher, the fewer experts a token waits for.",
            partial(_bars, report),
        )


def _bars(report: Report, theme: Theme) -> Figure:
    found = [one for one in strategies(report) if one.get("hits")]
    policies, capacities = hits_of(found)
    policy = next((name for name in policies if name != ORACLE), policies[0])
    figure = new_figure(theme, 1.4 + 0.62 * len(found), "Hits under each routing strategy")
    axes = figure.subplots()
    dress(axes, theme, drawable(f"{model_name(report)}, {policy}"), grid="x")
    thickness = 0.8 / len(capacities)
    at = np.arange(len(found))
    handles = [
        axes.barh(
            at + (number - (len(capacities) - 1) / 2) * thickness,
            [hit_rate(one, policy, capacity) or 0.0 for one in found],
            thickness * 0.92,
            color=theme.lines[number % len(theme.lines)],
            label=f"cache of {capacity * 100:.3g}%",
        )
        for number, capacity in enumerate(capacities)
    ]
    axes.set_yticks(at, [drawable(plain(one.get("title", "?"), 40)) for one in found])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.02)
    axes.set_xlabel("hit rate, tokens one by one")
    percent(axes, "x")
    legend(axes, theme, handles)
    return figure
