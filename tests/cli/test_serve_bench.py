"""`bench serve`: against ours as a process, and against one that says what it is told to."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.serve.conftest import Running, qwen_server

from .conftest import Run, expect_error
from .test_remote import events, refusal, saying

__all__ = ["qwen_server"]


def _report(done: Any) -> Any:
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_a_server_of_ours(run: Run, qwen_server: Running) -> None:
    options = ("--concurrency", "1,3", "--requests", 10, "--new-tokens", 4, "--temperature", 0)
    report = _report(run("bench", "serve", f"{qwen_server.url}/v1/", *options, "--json"))
    assert (report["server"], report["model"], report["new_tokens"]) == (qwen_server.url, "qwen3_moe", 4)
    assert [run["concurrency"] for run in report["runs"]] == [1, 3]
    for each in report["runs"]:
        assert (each["requests"], each["failed"], each["tokens"]) == (10, 0, 40)
        assert each["tokens_per_second"] == pytest.approx(40 / each["seconds"], rel=1e-2)
        first, whole = each["time_to_first_token"], each["time_of_answer"]
        assert 0 < first["p50"] <= whole["p50"] <= whole["p99"] <= each["seconds"]
    assert report["runs"][1]["cached_tokens"] > 0  # prompts that were asked before


def test_the_table_has_a_line_for_each_concurrency(run: Run, qwen_server: Running) -> None:
    done = run("bench", "serve", qwen_server.url, "--concurrency", "1, 2", "--requests", 2, "--new-tokens", 2)
    assert done.exit_code == 0, done.output
    assert [line.split()[0] for line in done.stdout.splitlines()[-2:]] == ["1", "2"]


def test_one_prompt_after_the_other_is_asked(run: Run, tmp_path: Any) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("one\ntwo\nthree\n")
    with saying(events({"content": "A\u2028"}, {"content": "b"})) as said:
        options = ("--prompts", prompts, "--limit", 2, "--concurrency", "1", "--requests", 3, "--json")
        report = _report(run("bench", "serve", said.url, *options))
    assert [each["messages"][0]["content"] for each in said.asked] == ["one", "two", "one"]
    assert report["runs"][0]["tokens"] == 9 and report["model"] == "told"


def test_what_is_not_answered_is_counted_and_told(run: Run) -> None:
    broken = events({"content": "A"})[:-200] + b"data: {nonsense\n\n"
    ended = b'data: {"error": {"message": "out of luck"}}\n\n'
    with saying(refusal(429, "later"), ended, broken, events({"content": "A"})) as said:
        done = run("bench", "serve", said.url, "--concurrency", "1", "--requests", 4, "--json")
    assert done.exit_code == 8
    (found,) = json.loads(done.stdout)["runs"]
    assert (found["requests"], found["failed"], found["tokens"]) == (4, 3, 3)
    assert "later" in done.stderr and "out of luck" in done.stderr


def test_what_cannot_be_measured(run: Run, qwen_server: Running) -> None:
    expect_error(run("bench", "serve", "127.0.0.1:1"), "no server answers", code=1)
    expect_error(run("bench", "serve"), "no server runs here", code=2)
    expect_error(run("bench", "serve", "ftp://x"), "is no address", code=2)
    for wrong in ("0", "1,,2", "x", "-1", ""):
        expect_error(run("bench", "serve", qwen_server.url, "--concurrency", wrong), "is no list of numbers", code=1)
