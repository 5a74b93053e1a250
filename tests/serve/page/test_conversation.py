"""A conversation on the page."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from playwright.sync_api import expect

from tests.serve.page.tab import COMPLETIONS, PATIENCE, Watched, answer_with, expect_over, say, shown, stream


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
