"""How pictures look: two themes of one palette that colour-blind people can tell apart, and rendering to bytes."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from textwrap import wrap
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FixedLocator, FuncFormatter, PercentFormatter

WIDTH = 9.0  # inches of every picture
PNG_DPI = 150
_LONGEST = 90  # characters of a line across the picture
BESIDE_LEGEND = 56  # and of one with a legend to its right
_LABEL = 36  # and of one beside the axes

# Okabe and Ito's palette.
ORANGE, SKY, GREEN, BLUE = "#E69F00", "#56B4E9", "#009E73", "#0072B2"
VERMILLION, PURPLE, YELLOW = "#D55E00", "#CC79A7", "#F0E442"

# No global state outlives a picture: these hold while it is built and saved, whatever the user's matplotlibrc says.
_SETTINGS: Any = {
    "font.family": ["DejaVu Sans"],
    "font.size": 10.0,
    "axes.unicode_minus": True,
    "text.parse_math": False,
    "text.usetex": False,
    "svg.hashsalt": "moe-local",
    "svg.fonttype": "path",
    "svg.image_inline": True,
    "savefig.bbox": None,
    "savefig.transparent": False,
}


@dataclass(frozen=True)
class Theme:
    """Colours by what they are for. `lines` are told apart on `page`, the most important first."""

    name: str
    suffix: str  # of file names
    page: str
    text: str
    muted: str
    grid: str
    empty: str  # a cell with nothing in it
    lines: tuple[str, ...]
    good: str  # served from the fastest tier, time well spent
    fair: str
    bad: str  # waited for
    links: tuple[str, str]  # reads, uploads


LIGHT = Theme(
    name="light",
    suffix="",
    page="#ffffff",
    text="#1b1f24",
    muted="#57606a",
    grid="#d8dee4",
    empty="#e6eaee",
    lines=(BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY),
    good=GREEN,
    fair=SKY,
    bad=VERMILLION,
    links=(BLUE, ORANGE),
)
DARK = Theme(
    name="dark",
    suffix="-dark",
    page="#14181d",
    text="#e6e9ed",
    muted="#9aa4af",
    grid="#333b45",
    empty="#2a313a",
    lines=(SKY, ORANGE, "#2fc79b", PURPLE, YELLOW, VERMILLION),
    good="#0fae82",
    fair=SKY,
    bad="#e8701a",
    links=(SKY, YELLOW),
)
THEMES = (LIGHT, DARK)


@contextmanager
def settings() -> Iterator[None]:
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        yield


def new_figure(theme: Theme, height: float, title: str) -> Figure:
    """A figure of WIDTH by `height` inches with its title on the left."""
    figure = Figure(
        figsize=(WIDTH, height), layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08), facecolor=theme.page
    )
    figure.suptitle(title, x=0.012, ha="left", color=theme.text, fontsize=13, fontweight="bold")
    return figure


def dress(axes: Axes, theme: Theme, subtitle: str = "", *, grid: str = "") -> None:
    """Colours, a subtitle on the left, a frame on two sides; grid lines across `x` or `y` or both."""
    axes.set_facecolor(theme.page)
    axes.set_title(subtitle, loc="left", color=theme.muted, fontsize=9.5)
    axes.tick_params(colors=theme.muted, labelsize=9, labelcolor=theme.text)
    axes.xaxis.label.set_color(theme.text)
    axes.yaxis.label.set_color(theme.text)
    for name, spine in axes.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(theme.grid)
    axes.set_axisbelow(True)
    for direction in grid:
        (axes.xaxis if direction == "x" else axes.yaxis).grid(color=theme.grid, linewidth=0.8)


def percent(axes: Axes, directions: str) -> None:
    """Shares of 1 written as percent."""
    for direction in directions:
        (axes.xaxis if direction == "x" else axes.yaxis).set_major_formatter(PercentFormatter(1.0))


def count_ticks(axes: Axes, direction: str, count: int, most: int, *, binary: bool = False) -> None:
    """Whole-numbered ticks 0 .. count - 1, at most `most`, in steps of 1, 2, 5, 10 .. or of powers of two."""
    steps = [2**power for power in range(24)] if binary else [f * 10**p for p in range(7) for f in (1, 2, 5)]
    step = next((step for step in steps if (count - 1) // step + 1 <= most), steps[-1])
    axis = axes.xaxis if direction == "x" else axes.yaxis
    axis.set_major_locator(FixedLocator(list(range(0, count, step))))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))


def legend(axes: Axes, theme: Theme, handles: Sequence[Any], *, above: bool = False) -> None:
    """To the right of the axes, top down; or above their right corner, in one row."""
    box = axes.legend(
        handles=handles,
        loc="lower right" if above else "upper left",
        bbox_to_anchor=(1.0, 1.0) if above else (1.01, 1.02),
        ncols=len(handles) if above else 1,
        frameon=False,
        fontsize=9,
        labelcolor=theme.text,
        borderaxespad=0.2,
        handlelength=1.2 if above else 2.4,
        columnspacing=1.2,
    )
    box.set_in_layout(True)


def mixed(colour: str, other: str, share: float) -> str:
    """`share` of a colour and the rest of another: a tint through which no grid line shows."""
    red, green, blue = (a * share + b * (1 - share) for a, b in zip(to_rgb(colour), to_rgb(other), strict=True))
    return to_hex((red, green, blue))


def drawable(text: str, most: int = _LONGEST) -> str:
    """The text in characters that the font has, at most so many: a missing one would be a box and a warning."""
    text = text if len(text) <= most else f"{text[: most - 1]}…"
    return "".join(c if ord(c) < 0x250 or c == "…" else "?" for c in text)


def wrapped(text: str) -> str:
    """A label beside the axes, in at most two lines."""
    return "\n".join(wrap(text, _LABEL, max_lines=2, placeholder="…"))


def png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=PNG_DPI, metadata={"Software": None})
    return buffer.getvalue()


def svg(figure: Figure) -> str:
    """An SVG element without dates, comments, document type or metadata: the same bytes for the same picture."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=nothing)
    text = re.sub(r"<!--.*?-->\n?", "", buffer.getvalue(), flags=re.DOTALL)
    text = re.sub(r"<metadata>.*?</metadata>\n?", "", text, flags=re.DOTALL)
    return text[text.index("<svg") :]
