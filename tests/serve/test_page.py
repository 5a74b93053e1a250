"""The page in a browser: a conversation, the experts, hostile answers, a keyboard alone, a phone, both themes."""

from __future__ import annotations

import json
import re
import shutil
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_local.engine import load
from moe_local.planning.options import Options
from moe_local.serve.app import make_app
from moe_local.serve.process import Server, listen, url_of
from moe_local.serve.service import Service
from moe_local.serve.settings import Names, ServeSettings
from tests.serve.auditing import AUDIT, CONTRASTS

playwright = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
expect = playwright.expect
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")

DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
COMPLETIONS, LIVE = "**/v1/chat/completions", "**/api/live"
VIEWS = ("chat", "experts")
PATIENCE = 30_000.0  # milliseconds
CONTEXT = 20_000  # tokens


@pytest.fixture(scope="module")
def server_url(qwen: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where a server answers, with a tiny model whose answers go on until they are stopped."""
    model = Path(shutil.copytree(qwen, tmp_path_factory.mktemp("served") / "tiny"))
    (model / "config.json").write_text(json.dumps(_without_end(json.loads((model / "config.json").read_text()))))
    (model / "generation_config.json").write_text('{"do_sample": false, "suppress_tokens": [2]}')  # 2: the end
    settings, options = ServeSettings(port=0), Options(device="cpu", context=CONTEXT, experts=0.5, max_sequences=4)
    sock = listen(settings)
    service = Service(lambda report: load(model, options, report=report), settings)
    server = Server(make_app(service, Names("tiny"), settings), settings, service.end, service.cut)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
    ready = threading.Event()
    service.on_ready = ready.set
    service.start()
    thread.start()
    assert ready.wait(PATIENCE / 1000), service.error
    yield url_of(sock)
    server.should_exit = server.force_exit = True
    thread.join()
    service.close()
    sock.close()


def _without_end(config: dict[str, Any]) -> dict[str, Any]:
    return config | {"max_position_embeddings": CONTEXT, "eos_token_id": None}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        yield driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


class Watched:
    """A tab, and all that it should not have done."""

    def __init__(self, browser: Any, url: str, **options: Any) -> None:
        self.url = url
        self.problems: list[str] = []
        self.refusals = False  # whether the server is meant to refuse something, of which the console tells
        self._context = browser.new_context(**{"viewport": DESKTOP, **options})
        self.page = self._context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.page.on("console", self._said)
        self.page.on("pageerror", lambda error: self.problems.append(f"error: {error}"))
        self.page.on("dialog", lambda dialog: (self.problems.append("a dialog"), dialog.dismiss()))
        self.page.on("request", self._asked)

    def _said(self, message: Any) -> None:
        if message.type == "error" and not (self.refusals and "Failed to load resource" in message.text):
            self.problems.append(f"console: {message.text}")

    def _asked(self, request: Any) -> None:
        if urlsplit(request.url).netloc != urlsplit(self.url).netloc and not request.url.startswith("data:"):
            self.problems.append(f"asked {request.url}")

    def open(self, view: str = "chat") -> Any:
        self.page.goto(f"{self.url}/#{view}")
        expect(self.page.locator("#send")).to_be_enabled(timeout=PATIENCE)
        return self.page

    def close(self) -> None:
        self._context.close()


@pytest.fixture
def watched(browser: Any, server_url: str) -> Iterator[Watched]:
    tab = Watched(browser, server_url)
    yield tab
    tab.close()
    assert tab.problems == []


@pytest.fixture
def page(watched: Watched) -> Any:
    """The page once the model is there."""
    return watched.open()


def say(page: Any, text: str) -> None:
    page.fill("#prompt", text)
    page.keyboard.press("Enter")


def expect_over(page: Any) -> None:
    expect(page.locator("#send")).to_have_text("Send", timeout=PATIENCE)
    expect(page.locator(".assistant").last.locator(".actions")).to_be_visible()


def stream(*pieces: str) -> str:
    """The events of an answer in so many pieces."""
    chunks = [{"choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]} for piece in pieces]
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"


def answer_with(page: Any, *pieces: str) -> None:
    """The next message is answered so, whatever the model."""
    page.route(COMPLETIONS, lambda route: route.fulfill(body=stream(*pieces), content_type="text/event-stream"))


def shown(page: Any, *pieces: str) -> Any:
    """The answer as it is shown."""
    answer_with(page, *pieces)
    say(page, "go")
    expect_over(page)
    return page.locator(".assistant > .body").last


# The conversation.


def test_a_message_is_answered_and_kept(page: Any) -> None:
    limit_to(page, 8)
    say(page, "one two three")
    expect_over(page)
    answer = page.locator(".assistant > .body")
    said = answer.inner_text()
    assert said
    expect(page.locator(".stats")).to_contain_text(re.compile(r"tokens/s · first after .* · context \d"))
    expect(page.locator("#told")).to_have_text("Cut off: the limit of tokens is reached.")
    page.reload()
    expect(page.locator(".user .body")).to_have_text("one two three")
    assert page.locator(".assistant > .body").inner_text() == said


def limit_to(page: Any, tokens: int) -> None:
    page.locator("#settings summary").click()
    page.fill("#max-tokens", str(tokens))
    page.fill("#temperature", "0")
    page.locator("#settings summary").click()


def test_an_answer_grows_until_it_is_stopped(page: Any) -> None:
    say(page, "one two three")
    answer = page.locator(".assistant > .body")
    lengths = []
    for _ in range(3):
        expect(answer).not_to_have_text("" if not lengths else answer.text_content(), timeout=PATIENCE)
        lengths.append(len(answer.text_content()))
        expect(page.locator("#send")).to_have_text("Stop")
    assert lengths == sorted(lengths)
    page.keyboard.press("Escape")
    expect_over(page)
    expect(page.locator(".note")).to_have_text("Stopped.")
    say(page, "four")
    expect(page.locator(".assistant > .body").last).not_to_be_empty(timeout=PATIENCE)
    page.click("#send")
    expect_over(page)
    assert page.locator(".message").count() == 4


def test_another_answer_takes_the_place_of_the_last(page: Any) -> None:
    limit_to(page, 8)
    say(page, "one two three")
    expect_over(page)
    first = page.locator(".assistant > .body").inner_text()
    with page.expect_request(COMPLETIONS) as asked:
        page.get_by_role("button", name="Regenerate").click()
    expect_over(page)
    assert [message["role"] for message in asked.value.post_data_json["messages"]] == ["user"]
    assert page.locator(".assistant > .body").all_inner_texts() == [first]  # at a temperature of 0


def test_the_last_message_can_be_changed(page: Any) -> None:
    limit_to(page, 4)
    for text in ("one", "two"):
        say(page, text)
        expect_over(page)
    page.get_by_role("button", name="Edit").click()
    expect(page.locator("#prompt")).to_have_value("two")
    expect(page.locator("#prompt")).to_be_focused()
    say(page, "three")
    expect_over(page)
    assert page.locator(".user .body").all_inner_texts() == ["one", "three"]
    page.click("#new-chat")
    expect(page.locator(".message")).to_have_count(0)


def test_settings_are_what_is_asked_for(page: Any) -> None:
    limit_to(page, 3)
    page.locator("#settings summary").click()
    page.fill("#system", "Be brief.")
    with page.expect_request(COMPLETIONS) as asked:
        say(page, "one")
    body = asked.value.post_data_json
    assert body["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "one"}]
    assert (body["temperature"], body["max_completion_tokens"], body["stream"]) == (0, 3, True)
    expect_over(page)


def test_a_new_chat_ends_the_answer_of_the_old(page: Any) -> None:
    say(page, "one two three")
    expect(page.locator(".assistant > .body")).not_to_be_empty(timeout=PATIENCE)
    page.click("#new-chat")
    expect(page.locator("#send")).to_have_text("Send")
    answer = shown(page, "another")
    expect(answer).to_have_text("another")
    expect(page.locator(".message")).to_have_count(2)


def test_reasoning_is_folded(page: Any) -> None:
    chunks = [{"reasoning_content": "First I **think**."}, {"content": "Then I answer."}]
    body = "".join(f"data: {json.dumps({'choices': [{'delta': delta}]})}\n\n" for delta in chunks)
    page.route(
        COMPLETIONS, lambda route: route.fulfill(body=f"{body}data: [DONE]\n\n", content_type="text/event-stream")
    )
    say(page, "go")
    expect_over(page)
    expect(page.locator(".reasoning .body")).to_be_hidden()
    page.locator(".reasoning summary").click()
    expect(page.locator(".reasoning .body strong")).to_have_text("think")
    expect(page.locator(".assistant > .body")).to_have_text("Then I answer.")


def test_an_answer_can_be_copied(page: Any) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    shown(page, "Run:\n\n```sh\necho **one**\n```\n")
    page.get_by_role("button", name="Copy code").click()
    assert page.evaluate("navigator.clipboard.readText()") == "echo **one**"
    page.get_by_role("button", name="Copy", exact=True).click()
    assert page.evaluate("navigator.clipboard.readText()") == "Run:\n\n```sh\necho **one**\n```\n"


# Errors, in words.


@pytest.mark.parametrize(
    ("response", "said"),
    [
        ({"status": 429, "headers": {"Retry-After": "7"}, "json": {"error": {"message": "x"}}}, "Try again in 7 s."),
        ({"status": 503, "json": {"error": {"message": "still loading"}}}, "not ready: still loading"),
        ({"status": 400, "json": {"error": {"message": "too long: 9 of 8"}}}, "too long: 9 of 8"),
        ({"status": 500, "body": "<b>broken</b>"}, "The server answered 500."),
        ({"body": stream("half ").replace("data: [DONE]\n\n", "")}, "connection was lost"),
        ({"body": stream("half ").replace("[DONE]", '{"error": {"message": "no more"}}')}, "no more"),
    ],
)
def test_an_error_is_told_and_can_be_tried_again(watched: Watched, response: dict[str, Any], said: str) -> None:
    watched.refusals = True
    page = watched.open()
    page.route(COMPLETIONS, lambda route: route.fulfill(**response))
    say(page, "go")
    expect(page.locator(".assistant .error[role=alert]")).to_contain_text(said)
    expect_over(page)
    answer_with(page, "there it is")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".assistant > .body")).to_have_text("there it is")
    expect(page.locator(".message")).to_have_count(2)


def test_loading_is_told(watched: Watched) -> None:
    watched.refusals = True
    page, loading = watched.page, {"status": "loading", "stage": "dense weights", "progress": 0.25}
    page.route("**/health", lambda route: route.fulfill(status=503, json=loading))
    page.goto(watched.url)
    expect(page.locator("#banner")).to_have_text("The model is being loaded: dense weights (25%)…")
    expect(page.locator("#send")).to_be_disabled()
    say(page, "early")
    expect(page.locator("#prompt")).to_have_value("early")
    page.unroute("**/health")
    expect(page.locator("#send")).to_be_enabled()
    expect(page.locator("#banner")).to_be_hidden()


def test_no_server_is_an_error_in_words(watched: Watched) -> None:
    watched.refusals = True
    page = watched.open()
    page.route(COMPLETIONS, lambda route: route.abort())
    say(page, "go")
    expect(page.locator(".assistant .error")).to_contain_text("cannot be reached")


def test_what_failed_is_not_told_to_the_model(watched: Watched) -> None:
    watched.refusals = True
    page = watched.open()
    page.route(COMPLETIONS, lambda route: route.fulfill(status=429, json={}))
    say(page, "lost")
    expect_over(page)
    answer_with(page, "yes")
    with page.expect_request(COMPLETIONS) as asked:
        say(page, "found")
    assert [message["content"] for message in asked.value.post_data_json["messages"]] == ["found"]
    expect_over(page)


def test_the_key_is_asked_for_and_kept_for_the_tab(watched: Watched) -> None:
    watched.refusals = True
    page = watched.page

    def guard(route: Any) -> None:
        if route.request.headers.get("authorization") == "Bearer right":
            route.continue_()
        else:
            route.fulfill(status=401, json={"error": {"message": "no"}})

    page.route(re.compile(r".*/(v1|api)/.*"), guard)
    page.goto(watched.url)
    dialog = page.get_by_role("dialog", name="API key")
    for key in ("wrong", "right"):
        expect(dialog).to_be_visible()
        expect(page.locator("#key-wrong")).to_be_visible(visible=key == "right")
        page.get_by_label("Key", exact=True).fill(key)
        page.keyboard.press("Enter")
    expect(dialog).to_be_hidden()
    expect(page.locator("#send")).to_be_enabled()
    page.reload()
    expect(page.locator("#send")).to_be_enabled()
    assert page.evaluate("Object.values(localStorage)") == []


# What a model may say.

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


MARKDOWN = """# Title

Some **bold**, *slanted*, ~~gone~~, `code *x*`, snake_case_name and 2 * 3 * 4.
Another line with [a link](https://example.org/a_(b)?q=1) and https://example.org/c.

- one
  - inner
- two **2**

3. three
4. four

| a | b |
|:-:|--:|
| 1 | x\\|y |

> quoted

---

```python
if x < 1:
    return **x**
```
Last.
"""
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
        in_pieces, at_once = page.evaluate(RENDER, pieces)
        assert in_pieces == at_once

    shown_alike()


# The experts.

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


# For everybody.


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
