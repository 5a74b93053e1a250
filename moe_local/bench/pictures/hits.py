"""Pictures of hit rates: against capacity under each policy, and layer by layer."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from moe_local.bench.report_reader import (
    ORACLE,
    Part,
    Report,
    layer_shares,
    model_name,
    number,
    numbers,
    part,
    plain,
    results,
    run_labels,
    runs,
)
from moe_local.policies import DEFAULT_POLICY

from . import Picture
from .theme import BESIDE_LEGEND, Theme, count_ticks, drawable, dress, legend, new_figure, percent

Curve = tuple[str, str]  # policy, scope
_LAYERS_AT = 0.25  # capacity at which layers are compared, or the nearest replayed


def by_capacity(report: Report) -> Iterator[Picture]:
    """Hit rate against capacity, a line for each policy and scope, where more than one capacity was replayed."""
    if len({result["capacity"] for result in results(report)}) > 1:
        yield Picture(
            "hit-rate",
            "Hit rate by cache size",
            "Each line is a policy: the higher, the fewer experts have to be fetched; what lies between the default"
            " and Belady's line, which knows the future, is the most that a better policy could gain.",
            partial(_capacity, report),
        )


def _capacity(report: Report, theme: Theme) -> Figure:
    figure = new_figure(theme, 4.9, "Hit rate by cache size")
    axes = figure.subplots()
    dress(axes, theme, drawable(model_name(report)), grid="xy")
    curves: dict[Curve, dict[float, float]] = {}
    for result in results(report):
        curves.setdefault(_curve(result), {})[float(result["capacity"])] = float(result["hit_rate"])
    looks = _looks(list(curves), theme)
    lines = []
    for curve in _best_first({curve: float(np.mean(list(points.values()))) for curve, points in curves.items()}):
        x, y = zip(*sorted(curves[curve].items()), strict=True)
        lines += axes.plot(x, y, **looks[curve], marker="o", markersize=4)
    axes.set_xlabel("cache, share of all experts")
    axes.set_ylabel("hit rate")
    axes.set_xlim(0, max(max(points) for points in curves.values()) * 1.02)
    axes.set_ylim(0, 1.02)
    percent(axes, "xy")
    _mark_token_set(axes, part(report.get("model")), theme)
    legend(axes, theme, lines)
    return figure


def _mark_token_set(axes: Axes, model: Part, theme: Theme) -> None:
    """A line where the cache holds exactly what one token needs: below it caching is worse than none."""
    experts, top_k = numbers(model.get("experts")), number(model.get("top_k")) or 0
    share = top_k * len(experts) / sum(experts) if sum(experts) > 0 else 0.0
    if 0 < share < axes.get_xlim()[1]:
        axes.axvline(share, color=theme.muted, linewidth=1, linestyle=(0, (1, 2)))
        axes.annotate(
            f"one token's experts ({share:.0%})",
            (share, 1),
            xycoords=axes.get_xaxis_transform(),
            xytext=(0, 2),
            textcoords="offset points",
            ha="left" if share < 0.7 * axes.get_xlim()[1] else "right",
            va="bottom",
            fontsize=9,
            color=theme.muted,
        )
        # On the same line as the subtitle, which then goes up.
        axes.set_title(axes.get_title(loc="left"), loc="left", color=theme.muted, fontsize=9.5, pad=18)


def by_layer(report: Report) -> Iterator[Picture]:
    """Of each run which tier answered in each layer; of a replay the policies' hit rates in each layer."""
    found = runs(report)
    for index, (run, label) in enumerate(zip(found, run_labels(found), strict=True), start=1):
        if layer_shares(part(run.get("layers"))).size:
            yield Picture(
                f"layers-{index}" if len(found) > 1 else "layers",
                "Where each layer's experts came from",
                "A column is a layer: the more of it is green, the more often its experts were already in the fastest"
                " memory; what came from disk is what the model waits for.",
                partial(_layers, part(run.get("layers")), label if len(found) > 1 else model_name(report)),
            )
    at = _compared(report)
    if at:
        yield Picture(
            "layer-hit-rate",
            "Hit rate of each layer",
            "A line that falls towards one side shows layers that get too little of the cache; a global cache tends"
            " to starve the deep ones.",
            partial(_replayed_layers, report, at),
        )


def _layers(layers: Part, subtitle: str, theme: Theme) -> Figure:
    shares = layer_shares(layers)
    figure = new_figure(theme, 3.9, "Where each layer's experts came from")
    axes = figure.subplots()
    dress(axes, theme, drawable(subtitle, BESIDE_LEGEND), grid="y")
    count = shares.shape[1]
    has_host = bool(shares[1].any())
    kinds = [("device" if has_host else "cache", theme.good), ("host RAM", theme.fair), ("disk", theme.bad)]
    base = np.zeros(count)
    handles = []
    for share, (name, colour) in zip(shares, kinds, strict=True):
        if name != "host RAM" or has_host:
            width = 0.8 if count <= 32 else 1.0
            edge: dict[str, Any] = {"edgecolor": theme.page, "linewidth": 0.4 if count > 32 else 0}
            axes.bar(np.arange(count), share, width, base, color=colour, **edge)
            handles.append(Patch(color=colour, label=name))
        base = base + share
    axes.set_xlabel("layer")
    axes.set_ylabel("share of requests")
    axes.set_xlim(-0.6, count - 0.4)
    axes.set_ylim(0, 1)
    percent(axes, "y")
    count_ticks(axes, "x", count, 24)
    legend(axes, theme, handles, above=True)
    return figure


def _compared(report: Report) -> list[Part]:
    """The results at one capacity that are worth comparing: the default, the oracle, and the best of the others."""
    having = [result for result in results(report) if len(numbers(result.get("layer_hit_rates"))) > 1]
    if not having:
        return []
    capacity = min({float(r["capacity"]) for r in having}, key=lambda value: (abs(value - _LAYERS_AT), value))
    at = {_curve(result): result for result in having if float(result["capacity"]) == capacity}
    named = [curve for curve in at if curve[0] in (DEFAULT_POLICY, ORACLE)]
    others = _best_first({curve: float(at[curve]["hit_rate"]) for curve in at if curve not in named})
    return [at[curve] for curve in named + others[:1]]


def _replayed_layers(report: Report, compared: list[Part], theme: Theme) -> Figure:
    figure = new_figure(theme, 3.9, "Hit rate of each layer")
    axes = figure.subplots()
    at = f"cache for {float(compared[0]['capacity']):.0%} of the experts"
    dress(axes, theme, " · ".join(filter(None, [drawable(model_name(report)), at])), grid="y")
    found = {_curve(result): numbers(result.get("layer_hit_rates")) for result in compared}
    looks = _looks([_curve(result) for result in results(report)], theme)
    lines = []
    for curve in _best_first({curve: float(np.mean(rates)) for curve, rates in found.items()}):
        few = len(found[curve]) <= 32
        lines += axes.plot(found[curve], **looks[curve], marker="o" if few else "", markersize=4)
    axes.set_xlabel("layer")
    axes.set_ylabel("hit rate")
    axes.set_ylim(0, 1.02)
    percent(axes, "y")
    count_ticks(axes, "x", max(map(len, found.values())), 16)
    legend(axes, theme, lines)
    return figure


def _curve(result: Part) -> Curve:
    return plain(result.get("policy", "?"), 20), plain(result.get("scope", "layer"), 10)


def _best_first(scores: dict[Curve, float]) -> list[Curve]:
    """The order of lines on the right is the order in the legend."""
    return sorted(scores, key=lambda curve: (-scores[curve], curve))


def _looks(curves: list[Curve], theme: Theme) -> dict[Curve, dict[str, Any]]:
    """A colour for each policy, a dash for each scope; the default thick, the oracle in the colour of text."""
    policies = sorted(
        {policy for policy, _ in curves} - {ORACLE}, key=lambda policy: (policy != DEFAULT_POLICY, policy)
    )
    colours = {policy: theme.lines[index % len(theme.lines)] for index, policy in enumerate(policies)}
    return {
        (policy, scope): {
            "color": colours.get(policy, theme.text),
            "linestyle": "-" if scope == "layer" else (0, (4, 2)),
            "linewidth": 3.0 if (policy, scope) == (DEFAULT_POLICY, "layer") else 1.6,
            "zorder": 2 if policy == DEFAULT_POLICY else 3,  # a thick line would hide thin ones
            "label": drawable(_label(policy, scope)),
        }
        for policy, scope in dict.fromkeys(curves)
    }


def _label(policy: str, scope: str) -> str:
    where = {"layer": "per layer"}.get(scope, scope)
    remark = " (default)" if (policy, scope) == (DEFAULT_POLICY, "layer") else ""
    return f"{policy}, {where}{remark}" if policy != ORACLE else f"{policy}, {where} (oracle)"
