"""Pictures in the terminal fit it, with and without colours."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from moe_local.cli.terminal import HeatMap, _fold, show_routing, sparkline
from tests.bench.reports import emptied, live, nulled, poisoned, replay

BARS = "▁▂▃▄▅▆▇█"
shares = st.lists(st.none() | st.floats(allow_nan=True, allow_infinity=True), max_size=60)
grids = st.tuples(st.integers(1, 30), st.integers(1, 30)).map(
    lambda shape: np.arange(1.0, shape[0] * shape[1] + 1).reshape(shape)
)


def printed(report: dict[str, Any], width: int, encoding: str = "utf-8", **options: Any) -> list[str]:
    """The lines that `show_routing` writes, without the codes for colours."""
    raw = io.BytesIO()
    with io.TextIOWrapper(raw, encoding=encoding) as file:
        show_routing(report, Console(file=file, width=width, highlight=False, **options))
        file.flush()
        written = raw.getvalue().decode(encoding)
    return [Text.from_ansi(line).plain for line in written.splitlines()]


COLOURED = {"color_system": "truecolor", "force_terminal": True, "legacy_windows": False}


@pytest.mark.parametrize("width", [1, 8, 40, 80, 200])
@pytest.mark.parametrize("options", [{}, COLOURED, COLOURED | {"no_color": True}])
@pytest.mark.parametrize("shape", [(1, 1, 1), (4, 8, 2), (94, 512, 10)])
def test_never_wider_than_the_console(width: int, options: dict[str, Any], shape: tuple[int, int, int]) -> None:
    lines = printed(live(*shape), width, **options)
    assert lines
    assert max(map(cell_len, lines)) <= width
    if width >= 40:
        assert len(lines) < 60


def test_half_blocks_in_colour_and_shades_without() -> None:
    coloured, plain = printed(live(), 80, **COLOURED), printed(live(), 80)
    assert coloured[1].startswith("0 ▀▀▀▀▀▀▀▀") and coloured[2].startswith("2 ▀")
    assert [line[0] for line in plain[1:5]] == ["0", "1", "2", "3"]
    assert not set("".join(plain[1:5])) & set("▀▄")
    assert set("".join(plain[1:5])) & set("░▒▓█")


def test_an_ascii_console_gets_ascii() -> None:
    lines = printed(poisoned(live(), "Größe…"), 80, encoding="ascii")
    assert any("Gr??e?" in line for line in lines)


def test_says_balance_and_groups() -> None:
    text = "\n".join(printed(live(), 120))
    for words in ("4 layers down, 8 experts across", "entropy of use", "hits", "mathematics", "0.2 (6.1)", "512"):
        assert words in text
    assert set(BARS) & set(text)
    assert "entropy of use" in "\n".join(printed(replay(), 120))


@pytest.mark.parametrize("report", [{}, emptied(live()), nulled(replay()), {"routing": 3, "runs": [7]}])
def test_what_is_missing_is_left_out(report: dict[str, Any]) -> None:
    said = "\n".join(printed(report, 80))
    assert "nan" not in said and "None" not in said


def test_names_are_no_markup() -> None:
    text = "\n".join(printed(poisoned(live(), "[bold]x[/nothing]"), 120))
    assert "[bold]x[/nothing]" in text


def test_a_layer_with_fewer_experts_ends_early() -> None:
    usage = np.array([[1.0, 2.0, 0.0], [1.0, np.nan, np.nan]])
    console = Console(file=io.StringIO(), width=20)
    with console.capture() as capture:
        console.print(HeatMap(usage))
    assert capture.get().splitlines()[:2] == ["0 ▓█ ", "1 ▓  "]


def test_no_console_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    show_routing(live())
    assert "use of experts" in capsys.readouterr().out


def test_sparkline_of_known_shares() -> None:
    assert sparkline([0, 0.5, 1, None, 2, -1, float("nan")]) == "▁▅█ █▁ "
    assert sparkline([0, 0, 1, 1], width=2) == "▁█"
    assert sparkline([]) == sparkline([0.5], width=0) == ""
    assert sparkline([0, 1], ascii_only=True).isascii()


@given(shares, st.none() | st.integers(0, 80))
def test_sparkline_fits(values: list[float | None], width: int | None) -> None:
    line = sparkline(values, width)
    assert len(line) == min(len(values), len(values) if width is None else width)
    assert set(line) <= {*BARS, " "}


@given(st.lists(st.floats(0, 1), min_size=1, max_size=60))
def test_sparkline_rises_where_the_shares_do(values: list[float]) -> None:
    line = sparkline(sorted(values))
    assert list(line) == sorted(line, key=BARS.index)


@given(grids, st.integers(1, 40), st.integers(1, 40))
def test_folding_keeps_shape_range_and_order(grid: np.ndarray, height: int, width: int) -> None:
    folded = _fold(grid, height, width)
    assert folded.shape == (min(height, grid.shape[0]), min(width, grid.shape[1]))
    assert grid.min() <= folded.min() and folded.max() <= grid.max()
    assert (np.diff(folded, axis=0) > 0).all() and (np.diff(folded, axis=1) > 0).all()
    if height >= grid.shape[0] and width >= grid.shape[1]:
        assert (folded == grid).all()
