"""How figures are written, and tables of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from moe_local.bench.report_reader import Part, number

NOTHING = "–"  # noqa: RUF001 - a dash where a figure is missing


@dataclass(frozen=True)
class Table:
    """`lines` are as long as `head`; the first column names, others hold figures, or `words`. `long`: a line for each
    layer.
    """

    title: str
    note: str
    head: list[str]
    lines: list[list[str]]
    long: bool = False
    words: bool = False


def share(value: float) -> str:
    """A share in [0, 1], in percent."""
    return f"{value:.1%}"


def multiple(value: float) -> str:
    """How many times as much."""
    return f"{value:.1f}x"


def seconds(value: float) -> str:
    """Seconds, in milliseconds below one."""
    return f"{value * 1e3:.3g} ms" if abs(value) < 1 else f"{value:.3g} s"


def figure(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:#.3g}".rstrip(".")


def whole(value: float) -> str:
    return f"{value:.0f}"


Format = Callable[[float], str]


def said(value: object, format_: Format) -> str:
    known = number(value)
    return NOTHING if known is None else format_(known)


def spread(metric: Part, format_: Format) -> str:
    """`12.3 (11.8 to 12.9)`; the median alone where all repetitions say the same."""
    middle, low, high = (said(metric.get(name), format_) for name in ("median", "low", "high"))
    return middle if NOTHING in (middle, low, high) or low == high else f"{middle} ({low} to {high})"
