"""The page for everybody: a keyboard alone, a phone, both themes, a screen reader; and its files."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest
from playwright.sync_api import expect

from tests.serve.page.auditing import AUDIT, CONTRASTS
from tests.serve.page.tab import MARKDOWN, PHONE, VIEWS, Watched, answer_with, expect_over, shown


def test_a_keyboard_is_enough(page: Any) -> None:
    answer_with(page, "an answer")
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    page.keyboard.press("Enter")
    expect(page.locator(".user .body")).to_have_text("one\ntwo")
    expect_over(page)
    tab_to(page, "Regenerate")
    page.keyboard.press("Enter")
    expect_over(page)
    page.reload()
    tab_to(page, "Chat")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#tab-experts")).to_be_focused()
    expect(page.locator("#experts")).to_be_visible()
    expect(page.locator("#chat")).to_be_hidden()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#tab-chat")).to_have_attribute("aria-selected", "true")
    tab_to(page, page.locator("#model").inner_text())
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog", name="The model")).to_be_visible()
    assert page.locator("#facts dt").count() > 3
    page.keyboard.press("Escape")
    expect(page.locator("#model")).to_be_focused()


def test_a_model_that_is_found_late_takes_the_focus_from_nothing(page: Any) -> None:
    held: list[Any] = []
    page.route("**/api/facts", lambda route: held.append(route))
    with page.expect_request("**/api/facts"):
        page.reload()
    tab_to(page, "Chat")
    expect(page.locator("#send")).to_be_disabled()
    held[0].continue_()
    expect(page.locator("#send")).to_be_enabled()
    expect(page.locator("#tab-chat")).to_be_focused()


def tab_to(page: Any, name: str) -> None:
    """Presses Tab until it is focused; each stop on the way can be seen."""
    for _ in range(40):
        focused = page.evaluate_handle("document.activeElement")
        if focused.evaluate("node => node.textContent.trim()") == name:
            return
        page.keyboard.press("Tab")
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none" or page.evaluate("document.activeElement === document.body")
    raise AssertionError(f"Tab does not come to {name}")


@pytest.mark.parametrize("view", VIEWS)
def test_a_phone_has_no_need_to_scroll_sideways(browser: Any, server_url: str, view: str) -> None:
    watched = Watched(browser, server_url, viewport=PHONE, is_mobile=True, has_touch=True)
    page = watched.open()
    shown(page, MARKDOWN, "w" * 500, "\n\n```\n" + "c" * 500 + "\n```\n\n|" + " column |" * 30 + "\n|" + "-|" * 30)
    page.click(f"#tab-{view}")
    page.wait_for_timeout(600)
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    small = "all => all.filter(e => e.checkVisibility() && e.getBoundingClientRect().height < 24).map(e => e.id)"
    assert page.locator("button").evaluate_all(small) == []  # WCAG's least size of a target
    watched.close()
    assert watched.problems == []


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_names_roles_and_contrast(browser: Any, server_url: str, theme: str, view: str) -> None:
    watched = Watched(browser, server_url, color_scheme=theme)
    page = watched.open()
    page.locator("#settings summary").click()
    shown(page, MARKDOWN)
    page.click(f"#tab-{view}")
    if view == "experts":
        expect(page.locator("#totals")).to_contain_text("Experts needed")
        page.locator("#table summary").click()
    assert page.evaluate("document.documentElement.dataset.theme") == theme
    assert page.evaluate(AUDIT) == []
    low = [found for found in page.evaluate(CONTRASTS) if found[0] < 4.5]
    assert low == []
    watched.close()
    assert watched.problems == []


def test_a_chosen_theme_stays(page: Any) -> None:
    before = page.evaluate("document.documentElement.dataset.theme")
    page.click("#theme")
    page.reload()
    after = page.evaluate("document.documentElement.dataset.theme")
    assert {before, after} == {"light", "dark"}
    expect(page.locator("#theme")).to_have_attribute("aria-pressed", str(after == "dark").lower())


def test_a_screen_reader_is_told_blocks_not_tokens(page: Any) -> None:
    shown(page, "First ", "para", "graph.\n\n", "Second", " one.\n")
    spoken = page.locator("#spoken p")
    assert spoken.all_text_contents() == ["First paragraph.", "Second one."]
    expect(page.locator("#spoken")).to_have_attribute("aria-live", "polite")
    expect(page.locator("#told")).to_have_text("The answer is complete.")


# Over HTTP.


def test_files_come_under_a_strict_policy(server_url: str) -> None:
    first = httpx.get(f"{server_url}/")
    policy = first.headers["Content-Security-Policy"]
    for rule in ("default-src 'none'", "script-src 'self'", "frame-ancestors 'none'", "form-action 'none'"):
        assert rule in policy
    assert "unsafe" not in policy
    names = re.findall(r'(?:src|href)="(page/[^"]+)"', first.text)
    assert len(names) >= 3
    for name in names:
        found = httpx.get(f"{server_url}/{name}")
        assert found.status_code == 200
        assert found.headers["X-Content-Type-Options"] == "nosniff"
        again = httpx.get(f"{server_url}/{name}", headers={"If-None-Match": found.headers["ETag"]})
        assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize(
    "path", ["page/", "page/none.js", "page/../live.py", "page/%2e%2e/live.py", "page//etc/passwd"]
)
def test_no_path_reaches_other_files(server_url: str, path: str) -> None:
    with httpx.Client() as client:
        request = client.build_request("GET", server_url)
        request.url = request.url.copy_with(raw_path=f"/{path}".encode())
        assert client.send(request).status_code == 404
