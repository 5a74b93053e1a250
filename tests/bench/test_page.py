"""The page is one sound file: nothing fetched, nothing run, no two things with one name."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from moe_local.bench.figures import NOTHING
from moe_local.bench.page import html, own_ids
from moe_local.bench.tables import details, headline
from tests.bench.reports import emptied, live, nulled, poisoned, replay
from tests.bench.test_pictures import NAMESPACES, without_a_part

VOID = {"meta", "br", "img", "link", "input"}
REFERENCE = re.compile(r"""(?:href="#|url\(#)([^")]+)""")


class Page(HTMLParser):
    """Reads a page; fails on a tag that does not close where it should."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def values(self, *names: str) -> list[str]:
        return [value for name, value in self.attributes if name in names]


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return {"live": html(live(3, 8, 2, runs=2)), "replay": html(replay(3, 8, 2))}


def expect_sound(text: str) -> Page:
    page = Page(text)
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    assert set(REFERENCE.findall(text)) <= set(ids)
    assert page.tags.isdisjoint({"script", "iframe", "object", "embed", "link", "base", "form", "foreignobject"})
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    links = page.values("href", "xlink:href", "src", "srcset", "action")
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in links)
    assert set(re.findall(r"https?://[^\s\"'<]+", text)) <= NAMESPACES
    assert not re.search(r"url\((?!#)|@import", text)
    text.encode()
    return page


def test_sound_and_in_both_themes(pages: dict[str, str]) -> None:
    for text in pages.values():
        page = expect_sound(text)
        assert "prefers-color-scheme: dark" in text
        themes = page.values("class")
        assert themes.count("light") == themes.count("dark") >= 4
        assert "*{" not in text  # matplotlib's style would hold for the whole page


def test_says_what_was_measured_where(pages: dict[str, str]) -> None:
    said = Page(pages["live"]).text
    for words in ("Qwen/Qwen3-30B-A3B", "AMD Ryzen 9 7950X, 16 cores", "NVIDIA GeForce RTX 4090", "64 GiB"):
        assert words in said
    for words in ("8 in each of 3 layers, 2 of them a token", "26.0 (24.2 to 27.0)", "7.4 J", "78.9%", "mathematics"):
        assert words in said
    assert "A recorded trace of 2048 tokens" in Page(pages["replay"]).text


def test_tables_are_rectangular_and_in_order() -> None:
    for report in (live(runs=3), live(), replay()):
        for table in headline(report) + details(report):
            assert {len(row) for row in table.lines} == {len(table.head)}
    rates = headline(replay())[0]
    assert rates.head[1:] == ["5%", "10%", "20%", "30%", "50%", "75%", "100%"]
    assert [row[0] for row in rates.lines][:2] == ["lfru, layer", "lfu, layer"]
    assert rates.lines[4][0] == "belady, layer"
    assert rates.lines[0][4] == "55.4%"


def test_a_budget_that_did_not_hold_is_said() -> None:
    report = live()
    report["runs"][0]["memory"]["ram"] |= {"budget": 10 << 30, "peak": 11 << 30}
    assert "no, 1 GiB over" in html({"runs": [{"memory": report["runs"][0]["memory"]}]})


def test_an_estimate_for_what_does_not_fit() -> None:
    report = replay()
    report["replay"]["results"][0]["tokens_per_second"] = None
    estimates = headline(report)[2]
    assert estimates.title == "Estimated tokens/s on rtx-3060-12gb"
    assert [row[0] for row in estimates.lines if row[1] == "does not fit"] == ["lru, layer"]


def test_a_run_that_failed_is_said_with_its_reason() -> None:
    report = {"runs": [{"config": {"experts": 0.5}}, {"config": {"experts": 0.1}, "error": "too <small>"}]}
    assert "10% of experts · failed: too &lt;small&gt;" in html(report)


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "\"'><img src=x onerror=alert(1)>",
        "</style></svg></title>--><script src=//evil.example></script>",
        "\ud800\x00]]>&amp;",
    ],
)
def test_hostile_text_stays_text(text: str) -> None:
    report = poisoned(live(1, 4, 1, runs=2, host=False), text)
    report["runs"][0]["config"][text] = text
    report["runs"][1]["summary"][text] = {"median": 1.0, "low": 1.0, "high": 1.0}
    report["runs"][0]["links"][text] = report["runs"][0]["links"]["disk"]
    for run in report["runs"]:
        del run["resident"], run["timeline"], run["layers"]
    page = expect_sound(html(report))
    shown = "".join(c if c.isprintable() else " " for c in text).strip()
    assert shown[:40] in page.text


def test_what_is_missing_is_left_out() -> None:
    assert "an unnamed model" in expect_sound(html({})).text
    for full in (live(1, 3, 1, runs=2), replay(1, 3, 1)):
        for report in (emptied(full), nulled(full), dict.fromkeys(full), dict.fromkeys(full, 3)):
            said = expect_sound(html(report)).text
            assert not re.search(r"\b(nan|inf|None)\b", said)
        for report in without_a_part(full):
            for table in headline(report) + details(report):
                assert any(set(row[1:]) - {NOTHING} for row in table.lines)


def test_ids_are_renamed_with_what_refers_to_them() -> None:
    svg = (
        '<svg><defs><style type="text/css">*{x: y}</style></defs><path id="a"/>'
        '<use xlink:href="#a" href="#a"/><g clip-path="url(#a)" data-id="a"/></svg>'
    )
    assert own_ids(svg, "p-") == (
        '<svg><path id="p-a"/><use xlink:href="#p-a" href="#p-a"/><g clip-path="url(#p-a)" data-id="a"/></svg>'
    )
