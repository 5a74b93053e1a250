"""What a model may say: hostile, long, marked down, in any pieces."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from playwright.sync_api import expect

from tests.serve.page.tab import MARKDOWN, shown

HOSTILE = [
    '<img src=x onerror="alert(1)">',
    "<script>alert(1)</script>",
    "<iframe srcdoc='<script>alert(1)</script>'></iframe>",
    "[click](javascript:alert(1))",
    "[click](JaVaScRiPt:alert(1))",
    "[click](data:text/html,<script>alert(1)</script>)",
    "[click](vbscript:x)",
    "![picture](javascript:alert(1))",
    "<a href='javascript:alert(1)'>x</a>",
    "`<svg onload=alert(1)>`",
    "```\n</code></pre><img src=x onerror=alert(1)>\n```",
    "# <style>*{display:none}</style>",
    "| <img src=x onerror=alert(1)> | b |\n|---|---|\n| <svg/onload=alert(1)> | c |",
    "[<img src=x onerror=alert(1)>](https://example.org/)",
    '[x](https://example.org/"onmouseover="alert(1))',
    "&lt;img src=x&gt; &#106;avascript:",
    "\u202egnp.exe \u0000\ud800 \u2028 end",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_answers_are_text(page: Any, text: str) -> None:
    answer = shown(page, *re.findall(r"(?s).{1,3}", text))
    found = answer.evaluate("node => [...node.querySelectorAll('*')].map(each => each.tagName.toLowerCase())")
    assert set(found) <= {"p", "h3", "code", "pre", "div", "span", "button", "a"} | {
        *("table", "thead", "tbody", "tr", "th", "td"),
    }
    links = answer.locator("a").evaluate_all("links => links.map(({href, rel, target}) => [href, rel, target])")
    assert all(href.startswith("https://example.org/") for href, _, _ in links)
    assert all((rel, target) == ("noopener noreferrer", "_blank") for _, rel, target in links)
    attributes = answer.evaluate("node => [...node.querySelectorAll('*')].flatMap(each => each.getAttributeNames())")
    assert not [name for name in attributes if name.startswith("on") or name in ("style", "src", "srcdoc")]


@pytest.mark.parametrize(
    "pieces",
    [
        ["x" * 1000] * 1000,
        [" " * 1000] * 500 + ["y"],
        ["**" * 500] * 40,
        ["[" * 1000] * 40,
        ["`a" * 500] * 40,
        ["# " + " " * 1900 + "x\n"] * 100,
        ["|" + " " * 1900 + "\n"] * 100,
        ["".join("  " * depth + "- item\n" for depth in range(300))],
        [">" * 1500 + "\n"] * 20,
        ["|a|b|\n|-|-|\n" + "|1|2|\n" * 5000],
    ],
    ids=["line", "spaces", "stars", "brackets", "ticks", "headings", "tables", "lists", "quotes", "rows"],
)
def test_long_answers_do_not_hang_the_page(page: Any, pieces: Sequence[str]) -> None:
    shown(page, *pieces)
    page.click("#new-chat", timeout=5000)
    expect(page.locator(".message")).to_have_count(0, timeout=5000)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


SHAPE = (
    "h3 p strong em del code a span.target a ul li ul li li strong ol[3] li li "
    "div.wide table thead tr th.center th.right tbody tr td.center td.right blockquote p hr "
    "div.code div.code-head span button pre code p"
)
SHAPE_OF = """node => [...node.querySelectorAll('*')].map((each) => {
  const start = each.tagName === 'OL' ? `[${each.start}]` : '';
  return each.tagName.toLowerCase() + (each.className ? `.${each.className}` : '') + start;
}).join(' ')"""


def test_markdown_has_its_shape(page: Any) -> None:
    answer = shown(page, MARKDOWN)
    assert answer.evaluate(SHAPE_OF) == SHAPE
    assert answer.locator("pre").inner_text() == "if x < 1:\n    return **x**"
    assert answer.locator("a").evaluate_all("links => links.map(({href}) => href)") == [
        "https://example.org/a_(b)?q=1",
        "https://example.org/c",
    ]
    expect(answer.locator(".target")).to_have_text("(https://example.org/a_(b)?q=1)")
    assert "snake_case_name and 2 * 3 * 4." in answer.inner_text()
    assert answer.locator("td").all_inner_texts() == ["1", "x|y"]


RENDER = """async (pieces) => {
  const { Markdown } = await import('/page/markdown.js');
  const shown = (parts) => {
    const root = document.createElement('div');
    const spoken = [];
    const markdown = new Markdown(root, (text) => spoken.push(text));
    for (const part of parts) markdown.append(part);
    markdown.finish();
    return [root.innerHTML, spoken.join('|')];
  };
  return [shown(pieces), shown([pieces.join('')])];
}"""
LINES = st.sampled_from([*MARKDOWN.splitlines(keepends=True), "\n", "- ", "***", "1", ". a\n", "```", "|-|\n", "  "])


def test_however_an_answer_comes_it_is_shown_alike(page: Any) -> None:
    @settings(max_examples=150, deadline=None)
    @given(st.lists(LINES, max_size=20).map("".join), st.data())
    def shown_alike(text: str, data: st.DataObject) -> None:
        cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=8).map(sorted))
        pieces = [text[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        assert_alike(page, pieces)

    shown_alike()


@pytest.mark.parametrize(
    "pieces",
    [
        ["text\n|-|\n-", " one"],  # the beginning of an item was taken for the line below a table's head
        ["- item\n\n|-|\n--", "- x"],
        ["text\n|a|\n|-|", "-\n"],
        ["> quoted\n|a|\n|-|", "|\n"],
    ],
)
def test_what_begins_like_a_table_may_become_something_else(page: Any, pieces: list[str]) -> None:
    assert_alike(page, pieces)


def assert_alike(page: Any, pieces: Sequence[str]) -> None:
    in_pieces, at_once = page.evaluate(RENDER, pieces)
    assert in_pieces == at_once
