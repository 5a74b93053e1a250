"""Pictures are files that other programs can read, whatever the report lacks or says."""

from __future__ import annotations

import copy
import re
import sys
import xml.etree.ElementTree as ET
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_local.bench.pictures import draw, pictures
from moe_local.bench.pictures.speed import Span, covered, stacked
from moe_local.bench.pictures.theme import LIGHT, settings, svg
from moe_local.bench.report_reader import run_labels
from moe_local.errors import MoeLocalError, StorageError
from tests.bench.reports import emptied, live, nulled, poisoned, replay
from tests.processes import python

NAMESPACES = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("pictures") / "made" / "on the way"
    draw(live(runs=2), directory)
    return directory


def test_every_picture_in_two_formats_and_two_themes(drawn: Path) -> None:
    single = {"sweep", "reuse"}
    each = {f"{name}-{run}" for name in ("heat-map", "layers", "timeline") for run in (1, 2)}
    expected = {f"{name}{dark}.{kind}" for name in single | each for dark in ("", "-dark") for kind in ("png", "svg")}
    assert {file.name for file in drawn.iterdir()} == expected


def test_which_pictures_a_report_has() -> None:
    assert {picture.name for picture in pictures(live())} == {"heat-map", "layers", "timeline", "reuse"}
    assert {picture.name for picture in pictures(replay())} == {"hit-rate", "layer-hit-rate", "heat-map", "reuse"}


def test_files_are_what_they_say_and_fetch_nothing(drawn: Path) -> None:
    for file in drawn.rglob("*.png"):
        assert file.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    for file in drawn.rglob("*.svg"):
        expect_sound(file.read_text(encoding="utf-8"))


def expect_sound(element: str) -> None:
    """Well-formed, without script, date, comment, address or a number that is none."""
    assert ET.fromstring(element).tag == "{http://www.w3.org/2000/svg}svg"
    assert set(re.findall(r"https?://[^\s\"'<]+", element)) <= NAMESPACES
    assert not re.search(r"<script|<!--|<metadata|<!DOCTYPE", element)
    assert not re.search(r"\b(nan|inf)\b", re.sub(r"data:image/png;base64,[^\"]+", "", element), re.IGNORECASE)


def test_the_same_bytes_each_time_whatever_the_users_settings(tmp_path: Path) -> None:
    report = {"runs": [{"layers": {"hits": [3, 4], "misses": [1, 2]}}]}
    first = draw(report, tmp_path / "a")
    with matplotlib.rc_context({"font.size": 20, "savefig.dpi": 30, "axes.grid": True}):
        mine = dict(matplotlib.rcParams)
        second = draw(report, tmp_path / "b")
        assert dict(matplotlib.rcParams) == mine
    assert [file.read_bytes() for file in first] == [file.read_bytes() for file in second]


@pytest.mark.parametrize("text", ["<script>alert(1)</script>", r'$\frac{"--> ]]>', "\x00\ud800\n模型 🤖" * 999])
@pytest.mark.filterwarnings("error")  # of matplotlib: no room, no such glyph
def test_hostile_names(text: str) -> None:
    for report in (poisoned(live(2, 4, 1, runs=2), text), poisoned(replay(2, 4, 1), text)):
        for picture in pictures(report):
            if picture.name in ("sweep", "hit-rate", "layers-1", "layer-hit-rate"):
                with settings():
                    expect_sound(svg(picture.build(LIGHT)))


@pytest.mark.parametrize("kind", ["live", "replay"])
def test_what_is_missing_is_left_out(kind: str) -> None:
    full = live(2, 4, 1, runs=2) if kind == "live" else replay(2, 4, 1)
    assert pictures({}) == []
    for report in (nulled(full), dict.fromkeys(full), dict.fromkeys(full, 3)):
        assert pictures(report) == []
    for report in (emptied(full), *without_a_part(full)):
        assert isinstance(pictures(report), list)


def without_a_part(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Copies of a report that lack one key, at the top or one floor below."""
    found = [{key: value for key, value in report.items() if key != gone} for gone in report]
    inner = report.get("runs", [{}])[-1] | report.get("replay", {})
    for gone in inner:
        lacking = copy.deepcopy(report)
        for part in (*lacking.get("runs", [])[-1:], lacking.get("replay", {})):
            part.pop(gone, None)
        found.append(lacking)
    return found


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 16, 4), (5, 3, 3)])
def test_small_and_uneven_models(shape: tuple[int, int, int]) -> None:
    report = live(*shape)
    report["runs"][0]["routing"]["usage"][-1] = [1]
    report["runs"][0]["resident"][-1] = [1]
    with settings():
        for picture in pictures(report):
            expect_sound(svg(picture.build(LIGHT)))


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=re.escape(str(tmp_path / "file"))) as caught:
        draw(live(1, 2, 1), tmp_path / "file" / "pictures")
    assert caught.value.remedy


def test_without_matplotlib_the_remedy_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MoeLocalError, match=re.escape("pip install 'moe-local[bench]'")):
        draw(live(), tmp_path)


def test_matplotlib_is_imported_when_asked_for() -> None:
    code = "import sys, moe_local.bench.page, moe_local.cli.terminal; assert 'matplotlib' not in sys.modules"
    python(code)


def test_runs_are_told_apart_by_what_differs() -> None:
    gib = 1 << 30
    configs = [
        {"ram": ram, "policy": policy, "context": 4096} for ram in (4 * gib, None) for policy in ("lru", "lfu")
    ]
    assert run_labels([{"config": config} for config in configs]) == [
        "RAM 4 GiB · policy lru",
        "RAM 4 GiB · policy lfu",
        "RAM unbounded · policy lru",
        "RAM unbounded · policy lfu",
    ]
    assert run_labels([{}, {}]) == ["run 1", "run 2"]


moments = st.tuples(st.integers(0, 1000), st.integers(1, 300))
some_spans = st.lists(moments, max_size=40).map(
    lambda found: [Span("read", 0, float(begin), float(begin + length)) for begin, length in sorted(found)]
)


@given(some_spans)
def test_spans_of_a_row_do_not_overlap(spans: list[Span]) -> None:
    placed, rows = stacked(spans)
    assert [span for span, _ in placed] == spans
    assert all(row < rows for _, row in placed)
    at_once = max((sum(s.begin <= t.begin < s.end for s in spans) for t in spans), default=0)
    assert rows <= max(1, at_once)
    for row in range(rows if at_once < 12 else 0):
        mine = [span for span, own in placed if own == row]
        assert all(a.end <= b.begin + 0.3 for a, b in pairwise(mine))


@given(some_spans)
def test_busy_time_counts_no_moment_twice(spans: list[Span]) -> None:
    moments = {moment for span in spans for moment in range(int(span.begin), int(span.end))}
    assert covered(spans) == pytest.approx(len(moments))
