"""The experts on the page: the heat map, rates and memory."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import expect

from tests.serve.page.tab import LIVE, PATIENCE, Watched, expect_over, say

LAYERS, COUNT = 3, 8
TIERS = ["ddrr....", "........", "rrrrrrrr"]
FRAME = {
    "time": 100.0,
    "layers": LAYERS,
    "experts": [COUNT] * LAYERS,
    "tiers": TIERS,
    "used": [[[1, 5], [7, 2]], [], []],
    "chosen": [[1, 7], [0, 2], [3, 4]],
    "counters": {"hits": 90, "host_hits": 6, "misses": 10, "bytes_read": 2**21, "stall_seconds": 0.5, "tokens": 20},
    "memory": {"ram": 2**30, "ram_budget": 2**31, "vram": 2**28, "vram_budget": 2**30},
}


def frames(*changes: dict[str, Any]) -> str:
    return "".join(f"data: {json.dumps(FRAME | change)}\n\n" for change in changes)


def show_experts(watched: Watched, *changes: dict[str, Any]) -> Any:
    """The view of the experts, with these frames."""
    body = frames(*changes)
    watched.page.route(LIVE, lambda route: route.fulfill(body=body, content_type="text/event-stream"))
    page = watched.open("experts")
    expect(page.locator("#totals")).to_contain_text("Experts needed")
    page.click("#pause")
    return page


CENTRES = """(canvas) => {
  const context = canvas.getContext('2d');
  const across = (canvas.width - 34 - 2) / 8;
  const down = (canvas.height - 18 - 2) / 3;
  const hex = (x, y) => '#' + [...context.getImageData(x, y, 1, 1).data].slice(0, 3)
    .map((byte) => byte.toString(16).padStart(2, '0')).join('');
  return [0, 1, 2].map((layer) => [...Array(8).keys()].map(
    (expert) => hex(34 + (expert + 0.5) * across, 18 + (layer + 0.5) * down)));
}"""
COLOUR = "name => getComputedStyle(document.documentElement).getPropertyValue('--' + name).trim()"


def test_the_heat_map_shows_where_experts_are(watched: Watched) -> None:
    page = show_experts(watched, {"used": [[], [], []]})
    idle = {letter: page.evaluate(COLOUR, f"{tier}-idle") for letter, tier in zip("dr.", TIER_NAMES, strict=True)}
    centres = page.locator("#heatmap").evaluate(CENTRES)
    assert centres == [[idle[letter] for letter in letters] for letters in TIERS]


TIER_NAMES = ("device", "ram", "disk")


def test_the_cursor_and_the_table_tell_the_same(watched: Watched) -> None:
    page = show_experts(watched, {})
    page.locator("#heatmap").focus()
    expect(page.locator("#readout")).to_have_text("Layer 0, expert 0: on the device, 0 uses")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#readout")).to_have_text(
        "Layer 0, expert 1: on the device, 5 uses, chosen by the last token"
    )
    for key in ("ArrowDown", "End", "ArrowRight"):
        page.keyboard.press(key)
    expect(page.locator("#readout")).to_have_text("Layer 1, expert 7: on disk, 0 uses")
    page.locator("#heatmap").hover(position={"x": 36, "y": 20})
    expect(page.locator("#readout")).to_have_text("Layer 0, expert 0: on the device, 0 uses")
    page.locator("#table summary").click()
    rows = page.locator("#layers tr").evaluate_all("rows => rows.map(row => [...row.cells].map(c => c.textContent))")
    assert rows[0] == ["0", "2", "2", "4", "7", "1, 7", "1 (5)"]
    assert [row[1:4] for row in rows] == [[str(letters.count(letter)) for letter in "dr."] for letters in TIERS]


def test_rates_and_memory_are_told(watched: Watched) -> None:
    later = {"hits": 170, "host_hits": 6, "misses": 30, "bytes_read": 2**22, "stall_seconds": 1.0, "tokens": 60}
    page = show_experts(watched, {}, {"time": 102.0, "counters": later})
    assert page.locator(".value").all_inner_texts() == ["80.0%", "1 MiB/s", "25.0%", "20/s"]
    labels = page.locator("#charts svg").evaluate_all("all => all.map(each => each.getAttribute('aria-label'))")
    assert labels[0] == "Hit rate: now 80.0%, between 80.0% and 80.0% lately"
    meters = page.get_by_role("meter").evaluate_all("all => all.map(each => each.getAttribute('aria-valuetext'))")
    assert meters == ["1 GiB of 2 GiB (50.0%)", "256 MiB of 1 GiB (25.0%)", "2 of 24 (8.3%)", "10 of 24 (41.7%)"]


def test_a_cpu_alone_has_no_device(watched: Watched) -> None:
    alone = {"tiers": ["rr......"] * 3, "memory": FRAME["memory"] | {"vram": None, "vram_budget": None}}
    page = show_experts(watched, alone)
    assert "device" not in page.locator("#experts").inner_text()


def test_the_real_experts_are_shown_while_it_answers(watched: Watched) -> None:
    page = watched.open()
    say(page, "one two three")
    page.click("#tab-experts")
    page.locator("#table summary").click()
    expect(page.locator("#layers tr").first).to_be_visible()
    page.wait_for_timeout(2500)
    page.click("#pause")
    rows = page.locator("#layers tr").evaluate_all("rows => rows.map(row => [...row.cells].map(c => c.textContent))")
    in_ram = [int(row[1]) for row in rows]
    assert all(0 < count <= int(row[1]) + int(row[2]) for count, row in zip(in_ram, rows, strict=True))
    assert all(int(row[3].replace(",", "")) > 0 and row[4] != "none" for row in rows)
    page.click("#tab-chat")
    page.keyboard.press("Escape")
    expect_over(page)


def test_nothing_is_asked_for_while_nobody_looks(watched: Watched) -> None:
    page = watched.open()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(urlsplit(request.url).path))
    page.wait_for_timeout(300)
    assert "/api/live" not in asked
    page.click("#tab-experts")
    expect(page.locator("#totals")).to_contain_text("Experts needed")
    assert [path for path in asked if not path.startswith("/page/")] == ["/api/live"]


def test_a_lost_connection_is_told_and_made_again(watched: Watched) -> None:
    watched.refusals = True
    page = watched.page
    page.route(LIVE, lambda route: route.fulfill(status=503, json={"error": {"message": "ending"}}))
    watched.open("experts")
    expect(page.locator("#live-state")).to_contain_text("not ready: ending")
    page.unroute(LIVE)
    expect(page.locator("#totals")).to_contain_text("Experts needed", timeout=PATIENCE)
    expect(page.locator("#live-state")).to_be_empty()
