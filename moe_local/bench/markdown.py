"""A report as Markdown: what it is of, and its tables, for a paper's appendix or an issue."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from moe_local.bench.about import facts, lead, title
from moe_local.bench.figures import Table
from moe_local.bench.report_reader import Report
from moe_local.bench.tables import details, headline

_SPECIAL = str.maketrans({character: f"\\{character}" for character in "\\`*_[]<>|"})


def markdown(report: Report) -> str:
    """The title, what was measured on what, and every table that is not one line a layer."""
    told = [f"- {_text(label)}: {_text(value)}" for label, value in facts(report)]
    tables = [line for table in (*headline(report), *details(report)) if not table.long for line in _table(table)]
    return "\n".join([f"# {_text(title(report))}", "", _text(lead(report)), "", *told, *tables, ""])


def _table(table: Table) -> Iterator[str]:
    yield from ("", f"## {_text(table.title)}", "", _text(table.note), "")
    yield _row(table.head)
    yield "|" + "|".join(["---", *["---:"] * (len(table.head) - 1)]) + "|"
    yield from map(_row, table.lines)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(_text, cells)) + " |"


def _text(text: str) -> str:
    """As it is, on one line: nothing in it is markup."""
    return " ".join(text.translate(_SPECIAL).split())
