"""What routing strategies make of a model's scores, as tables."""

from __future__ import annotations

from collections.abc import Iterator

from moe_local.bench.figures import NOTHING, Table, figure, multiple, said, share
from moe_local.bench.report_reader import Part, Report, hit_rate, hits_of, plain, strategies


def strategy_tables(report: Report) -> Iterator[Table]:
    found = strategies(report)
    policies, capacities = hits_of(found)
    balance = [
        ("busiest", multiple), ("unused", share), ("dropped", share), ("experts_per_token", figure),
        ("experts_per_batch", figure),
    ]  # fmt: skip
    head = ["strategy", "busiest", "unused", "dropped", "experts a token", "a batch"]
    lines = [[_strategy(one), *(said(one.get(name), form) for name, form in balance)] for one in found]
    note = (
        "Busiest: the most used expert's load over the mean. Unused: experts that nobody chose. Dropped: tokens that"
        " no expert sees. Then different experts that a layer needs."
    )
    yield Table("Balance", note, head, lines)
    columns = ["strategy", *(f"{capacity * 100:.3g}%" for capacity in capacities)]
    for policy in policies:
        note = "Columns are cache sizes, as shares of all experts. Without figures: it cannot route a token alone."
        rows = [[_strategy(o), *(said(hit_rate(o, policy, at), share) for at in capacities)] for o in found]
        yield Table(f"Hits of tokens one by one, {policy}", note, columns, rows)
    told = [[_strategy(one), plain(one.get("paper"), 60), plain(one.get("note") or NOTHING, 120)] for one in found]
    yield Table("Strategies", "Papers, and what was assumed.", ["strategy", "paper", "note"], told, words=True)


def _strategy(one: Part) -> str:
    return plain(one.get("title", "?"), 40)
