"""What is done at a tab, and all that it should not do."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import expect

DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
COMPLETIONS, LIVE = "**/v1/chat/completions", "**/api/live"
VIEWS = ("chat", "experts")
PATIENCE = 60_000.0  # milliseconds


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
