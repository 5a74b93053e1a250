"""A report as tables of text: the figures beside the pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from moe_local.bench.figures import NOTHING, Format, Table, figure, said, seconds, share, spread, whole
from moe_local.bench.report_reader import (
    ORACLE,
    Part,
    Report,
    layer_shares,
    matrix,
    number,
    numbers,
    part,
    parts,
    plain,
    results,
    routing,
    run_labels,
    runs,
)
from moe_local.bench.strategy_tables import strategy_tables
from moe_local.policies import DEFAULT_POLICY
from moe_local.units import format_size


def headline(report: Report) -> list[Table]:
    """What was measured or replayed; tables without figures are left out."""
    made = (*_summary(report), *_replayed(report), *_foreseen(report), *strategy_tables(report))
    return [table for table in made if table.lines]


def details(report: Report) -> list[Table]:
    """What lies behind it; tables without figures are left out."""
    made = (*_links(report), *_memory(report), *_balance(report), *_groups(report))
    return [table for table in made if table.lines]


METRICS: dict[str, tuple[str, Format]] = {
    "decode_tokens_per_second": ("decode, tokens/s", figure),
    "prefill_tokens_per_second": ("prefill, tokens/s", figure),
    "time_to_first_token": ("time to first token", seconds),
    "inter_token_p50": ("between tokens, p50", seconds),
    "inter_token_p95": ("between tokens, p95", seconds),
    "inter_token_p99": ("between tokens, p99", seconds),
    "hit_rate": ("hits", share),
    "decode_hit_rate": ("hits while decoding", share),
    "host_hit_rate": ("misses found in RAM", share),
    "prefetch_on_share": ("decoding while reading ahead was on", share),
    "prefetch_recall": ("needed experts predicted, while it was on", share),
    "prefetch_precision": ("experts read ahead that were needed", share),
    "misses_prefetched": ("misses that were read ahead", share),
    "misses_uploaded_ahead": ("misses that were uploaded ahead", share),
    "bytes_read_per_token": ("read a token", format_size),
    "bytes_wasted_per_token": ("read ahead for nothing a token", format_size),
    "stall_share": ("share of time stalled", share),
}


def _summary(report: Report) -> Iterator[Table]:
    found = runs(report)
    names = list(dict.fromkeys([*METRICS, *(name for run in found for name in part(run.get("summary")))]))
    body = []
    for name in names:
        label, format_ = METRICS.get(name, (plain(name), figure))
        cells = [spread(part(part(run.get("summary")).get(name)), format_) for run in found]
        if set(cells) - {NOTHING}:
            body.append([label, *cells])
    energy = [said(run.get("energy_joules_per_token"), lambda joules: f"{joules:.3g} J") for run in found]
    if set(energy) - {NOTHING}:
        body.append(["energy a token", *energy])
    note = "Medians over the repetitions, with the lowest and the highest in brackets."
    yield Table("Speed and hits", note, ["", *_columns(found)], body)


def _columns(found: Sequence[Part]) -> list[str]:
    return ["measured"] if len(found) == 1 else run_labels(found)


def _replayed(report: Report) -> Iterator[Table]:
    found = results(report)
    capacities = sorted({float(result["capacity"]) for result in found})
    curves = sorted({_curve(result) for result in found}, key=_rank)
    head = ["policy, scope", *(f"{capacity * 100:.3g}%" for capacity in capacities)]
    at = {(_curve(result), float(result["capacity"])): result for result in found}
    empty: Part = {}

    def table(title: str, note: str, cell: Callable[[Part], str]) -> Table:
        body = [[", ".join(c), *(cell(at.get((c, capacity), empty)) for capacity in capacities)] for c in curves]
        return Table(title, note, head, [row for row in body if set(row[1:]) - {NOTHING}])

    of = "Columns are cache sizes, as shares of all experts."
    yield table("Hit rates under each policy", of, lambda result: said(result.get("hit_rate"), share))
    yield table("Bytes fetched per token", of, lambda result: said(result.get("bytes_per_token"), format_size))
    profiles = sorted({plain(result["profile"]) for result in found if result.get("profile") is not None})
    machine = f" on {', '.join(profiles)}" if profiles else ""
    if any(numbers(result.get("tokens_per_second")) for result in found):
        note = f"{of} An estimate from bandwidths, lowest to highest."
        yield table(f"Estimated tokens/s{machine}", note, _estimate)


def _foreseen(report: Report) -> Iterator[Table]:
    note = "The likeliest experts of the next layer, while tokens were decoded one by one."
    head = ["predictor", "experts predicted", "of the needed", "of the predicted"]
    lines = [
        [
            plain(found.get("predictor", "?"), 20),
            *(
                said(found.get(name), form)
                for name, form in (("depth", whole), ("recall", share), ("precision", share))
            ),
        ]
        for found in parts(part(report.get("replay")).get("predictions"))
    ]
    yield Table("How right predictors were", note, head, lines)


def _curve(result: Part) -> tuple[str, str]:
    return plain(result.get("policy", "?"), 20), plain(result.get("scope", "layer"), 10)


def _rank(curve: tuple[str, str]) -> tuple[bool, bool, bool, str]:
    """Per layer before global; the default first, the oracle last."""
    policy, scope = curve
    return scope != "layer", policy == ORACLE, policy != DEFAULT_POLICY, policy


def _estimate(result: Part) -> str:
    ends = numbers(result.get("tokens_per_second"))
    if len(ends) == 2:
        return f"{figure(ends[0])} to {figure(ends[1])}"
    return "does not fit" if result else NOTHING


def _links(report: Report) -> Iterator[Table]:
    found = runs(report)
    body = []
    for run, label in zip(found, _columns(found), strict=True):
        for name, value in part(run.get("links")).items():
            link = part(value)
            achieved, measured = number(link.get("gb_per_second")), number(link.get("measured_gb_per_second"))
            used = share(achieved / measured) if achieved is not None and measured else NOTHING
            body.append(
                [
                    plain(name) if len(found) == 1 else f"{label}: {plain(name)}",
                    said(link.get("bytes"), format_size),
                    said(link.get("seconds"), seconds),
                    said(achieved, figure),
                    said(measured, figure),
                    used,
                ]
            )
    note = "GB/s while the link was busy, against what a plain copy reaches on this machine."
    yield Table("Links", note, ["link", "moved", "busy", "GB/s", "GB/s alone", "share"], body)


def _memory(report: Report) -> Iterator[Table]:
    found = runs(report)
    body = []
    for run, label in zip(found, _columns(found), strict=True):
        for name, value in part(run.get("memory")).items():
            tier = part(value)
            sizes = [said(tier.get(key), format_size) for key in ("budget", "planned", "peak")]
            if set(sizes) - {NOTHING}:
                where = plain(name).upper()
                body.append([where if len(found) == 1 else f"{label}: {where}", *sizes, _kept(tier)])
    yield Table(
        "Memory", "The budget bounds the whole process.", ["memory", "budget", "planned", "peak", "kept"], body
    )


def _kept(tier: Part) -> str:
    budget, peak = number(tier.get("budget")), number(tier.get("peak"))
    if budget is None or peak is None:
        return NOTHING
    return "yes" if peak <= budget else f"no, {format_size(peak - budget)} over"


def _balance(report: Report) -> Iterator[Table]:
    """A row for each layer, after one with the means."""
    routed = routing(report)
    columns: dict[str, list[float]] = {
        "entropy": numbers(routed.get("entropy")),
        "never used": numbers(routed.get("dead")),
        "half of the uses": numbers(routed.get("hot")),
        "used by the token before": numbers(routed.get("adjacent_reuse")),
    }
    found = runs(report)
    for run, label in zip(found, _columns(found), strict=True):
        of = f", {label}" if len(found) > 1 else ""
        served = layer_shares(part(run.get("layers")))
        if served.size:
            columns[f"hits{of}"] = served[0].tolist()
    columns = {name: values for name, values in columns.items() if values}
    count = max(map(len, columns.values()), default=0)
    body = [
        [str(layer), *(share(values[layer]) if layer < len(values) else NOTHING for values in columns.values())]
        for layer in range(count)
    ]
    if len(body) > 1:
        body.insert(0, ["all, mean", *(share(float(np.mean(values))) for values in columns.values())])
    note = (
        "Entropy of the use of a layer's experts (100%: all alike); experts never used; the smallest share of experts"
        " with half of the uses; experts of a token that the one before used too."
    )
    yield Table("Balance of each layer", note, ["layer", *columns], body, long=True)


def _groups(report: Report) -> Iterator[Table]:
    groups = part(routing(report).get("groups"))
    listed = groups.get("names")
    names = [plain(name, 40) for name in listed] if isinstance(listed, list) else []
    tokens, overlap = numbers(groups.get("tokens")), matrix(groups.get("overlap"))
    body = []
    for index, name in enumerate(names):
        line = overlap[index] if index < len(overlap) else []
        cells = [f"{line[other]:.2f}" if other < len(line) else NOTHING for other in range(len(names))]
        body.append([name, f"{tokens[index]:.0f}" if index < len(tokens) else NOTHING, *cells])
    note = "Likeness of the use of experts between groups of prompts: 1 where it is the same, 0 where none is shared."
    yield Table("Groups of prompts", note, ["group", "tokens", *names], body)
    yield from _marked(groups, names)


def _marked(groups: Part, names: Sequence[str]) -> Iterator[Table]:
    listed = groups.get("marked")
    body = [
        [
            name,
            said(expert.get("layer"), whole),
            said(expert.get("expert"), whole),
            said(expert.get("lift"), lambda lift: f"{lift:.3g} times"),
            said(expert.get("share"), share),
        ]
        for name, experts in zip(names, listed if isinstance(listed, list) else [], strict=False)
        for expert in parts(experts)
    ]
    note = "Experts that a group uses much more than the others do, and their share of its uses in that layer."
    yield Table("Experts of a group", note, ["group", "layer", "expert", "more often", "share"], body)
