"""`moe-local batch`."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from moe_local.units import MIB
from tests.processes import run as run_process
from tests.processes import small_disk, wait_until

from .conftest import Run, expect_error

QUICK = ("--context", "128", "--temperature", "0", "--experts", "50%", "--no-pack")
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """200 requests of different lengths."""
    lines = [{"id": f"q{n}", "prompt": "why " * (n % 9 + 1), "max_new_tokens": n % 7 + 2} for n in range(200)]
    file = tmp_path / "in.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def _records(file: Path) -> dict[Any, Any]:
    records = [json.loads(line) for line in file.read_text().splitlines()]
    found = {record["id"]: record for record in records}
    assert len(found) == len(records)
    return found


@pytest.fixture
def undisturbed(run: Run, qwen: Path, questions: Path, tmp_path: Path) -> dict[Any, Any]:
    out = tmp_path / "undisturbed.jsonl"
    result = run("batch", questions, qwen, "-o", out, *QUICK)
    assert result.exit_code == 0, result.output
    assert "200 of 200 lines" in result.stderr
    return _records(out)


def test_answers_are_those_of_generate(run: Run, qwen: Path, undisturbed: dict[Any, Any]) -> None:
    assert len(undisturbed) == 200
    for number in (0, 57, 130):
        record = undisturbed[f"q{number}"]
        prompt, tokens = "why " * (number % 9 + 1), number % 7 + 2
        alone = run("generate", qwen, "-p", prompt, "-n", tokens, "--json", *QUICK)
        found = json.loads(alone.stdout)
        assert (record["text"], record["new_tokens"]) == (found["text"], found["new_tokens"])


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_any_moment_it_goes_on(
    process: Start, qwen: Path, questions: Path, tmp_path: Path, undisturbed: dict[Any, Any], kills: int
) -> None:
    out, rng, killed = tmp_path / "out.jsonl", random.Random(kills), 0
    command = ("batch", questions, qwen, "-o", out, "--batch-size", "4", *QUICK)
    while killed < kills:
        started = process(*command)
        before = out.read_bytes().count(b"\n") if out.exists() else 0
        wanted = before + rng.randint(0, 2 * (200 - before) // (kills - killed + 1))
        while started.poll() is None and (out.read_bytes().count(b"\n") if out.exists() else 0) < wanted:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.05))
        started.kill()
        started.communicate()
        killed += 1
        with out.open("ab") if out.exists() else open(os.devnull, "wb") as file:  # noqa: PTH123
            file.write(b'{"id": "q1')  # as if it had been writing
    finished = process(*command, "--json")
    stdout, stderr = finished.communicate(timeout=300)
    assert finished.returncode == 0, stderr
    summary = json.loads(stdout)
    assert summary["lines"] == summary["answered_before"] + summary["written"] == 200
    assert _records(out) == undisturbed


def test_ctrl_c_leaves_whole_lines_and_says_so(process: Start, qwen: Path, questions: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    started = process("batch", questions, qwen, "-o", out, "--batch-size", "2", *QUICK)
    wait_until(lambda: out.exists() and out.stat().st_size, started)
    started.send_signal(signal.SIGINT)
    _, stderr = started.communicate(timeout=60)
    assert started.returncode == 130
    assert "the same command goes on" in stderr
    assert "Traceback" not in stderr
    assert 0 < len(_records(out)) < 200


def test_bad_lines_become_error_records(run: Run, qwen: Path, tmp_path: Path) -> None:
    rng, good = random.Random(0), '{"id": "good%d", "prompt": "hello", "max_new_tokens": 2}'
    lines: list[bytes] = []
    for number in range(1000):
        text = bytearray((good % number).encode())
        for _ in range(rng.randint(1, 4)):
            text[rng.randrange(len(text))] = rng.choice(b'{}[]",:\x00\xff0n')
        lines.append(bytes(text).replace(b"\n", b" "))
        if number % 100 == 0:
            lines.append((good % (10_000 + number)).encode())
    (tmp_path / "in.jsonl").write_bytes(b"\n".join(lines))
    result = run("batch", tmp_path / "in.jsonl", qwen, "-o", tmp_path / "out.jsonl", "--json", *QUICK, "-n", "2")
    summary = json.loads(result.stdout)
    records = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len(records) == summary["lines"] == len({record["line"] for record in records}) == 1010
    failed = [record for record in records if "error" in record]
    assert result.exit_code == 8
    assert summary["failed"] == len(failed) > 500
    answered = {record["id"] for record in records if "text" in record}
    assert answered >= {f"good{10_000 + number}" for number in range(0, 1000, 100)}
    assert all(record["error"] and "Traceback" not in record["error"] for record in failed)


def test_prompts_that_cannot_be_run(run: Run, qwen: Path, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"prompt": "%s"}\n{"prompt": "ok", "max_new_tokens": 3}\n' % ("long " * 500))
    result = run("batch", tmp_path / "in.jsonl", qwen, *QUICK)
    assert result.exit_code == 8
    long, ok = sorted((json.loads(line) for line in result.stdout.splitlines()), key=lambda record: record["line"])
    assert "and the context holds 128" in long["error"]
    assert ok["new_tokens"] == 3
    fast = run("batch", tmp_path / "in.jsonl", qwen, "-o", tmp_path / "out.jsonl", "--fail-fast", *QUICK)
    expect_error(fast, "line 1: the prompt has", code=1)


def test_text_from_stdin_in_order(run: Run, qwen: Path) -> None:
    result = run("batch", "-", qwen, "--ordered", "-n", "3", *QUICK, stdin="one two three\n\nfour\nfive six\n")
    assert result.exit_code == 0, result.output
    records = [json.loads(line) for line in result.stdout.splitlines()]
    assert [record["line"] for record in records] == [1, 3, 4]


def test_seeds_are_each_lines_own(run: Run, qwen: Path, tmp_path: Path) -> None:
    """Sampled, a line says the same among other neighbours."""
    line = '{"prompt": "hello", "seed": 5, "temperature": 1.0, "top_k": 40, "max_new_tokens": 8}\n'
    (tmp_path / "one.jsonl").write_text(line)
    (tmp_path / "many.jsonl").write_text('{"prompt": "hi there", "temperature": 1.0, "seed": 1}\n' * 3 + line)
    texts = [
        [
            json.loads(each)
            for each in run("batch", tmp_path / name, qwen, "--ordered", "-n", "8", *QUICK[:2]).stdout.splitlines()
        ]
        for name in ("one.jsonl", "many.jsonl")
    ]
    assert texts[0][-1]["text"] == texts[1][-1]["text"]
    assert texts[1][0]["text"] == texts[1][1]["text"] != texts[1][3]["text"]


def test_openai_files(run: Run, qwen: Path, tmp_path: Path) -> None:
    body = {"model": "gpt", "messages": [{"role": "user", "content": "Hello world!"}], "max_tokens": 4}
    lines = [{"custom_id": f"r{n}", "method": "POST", "url": "/v1/chat/completions", "body": body} for n in range(3)]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, lines)))
    result = run("batch", tmp_path / "in.jsonl", qwen, "-o", tmp_path / "out.jsonl", *QUICK)
    assert result.exit_code == 0, result.output
    records = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert {record["custom_id"] for record in records} == {"r0", "r1", "r2"}
    assert all(record["response"]["body"]["usage"]["completion_tokens"] == 4 for record in records)
    again = run("batch", tmp_path / "in.jsonl", qwen, "-o", tmp_path / "out.jsonl", *QUICK)
    assert "3 of 3 lines, 3 of them earlier" in again.stderr


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "small", 16 << 10) as folder:
        yield folder


def test_a_full_disk_ends_it_and_it_goes_on(
    run: Run, qwen: Path, questions: Path, disk: Path, undisturbed: dict[Any, Any]
) -> None:
    out = disk / "out.jsonl"
    full = run("batch", questions, qwen, "-o", out, *QUICK)
    expect_error(full, "no room to write", code=6)
    answered = len(_records(out))
    assert 0 < answered < 200
    assert run_process(["mount", "-o", f"remount,size={MIB}", disk]).returncode == 0
    result = run("batch", questions, qwen, "-o", out, "--json", *QUICK)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["answered_before"] == answered
    assert _records(out) == undisturbed


def test_a_missing_file_is_said(run: Run, qwen: Path, tmp_path: Path) -> None:
    expect_error(run("batch", tmp_path / "none.jsonl", qwen), "cannot read", code=1)
    (tmp_path / "in.jsonl").write_text('{"prompt": "a"}\n')
    expect_error(run("batch", tmp_path / "in.jsonl", qwen, "--format", "xml"), "--format xml is unknown")
    expect_error(run("batch", tmp_path / "in.jsonl", qwen, "-o", tmp_path / "no" / "out.jsonl"), "cannot write")


def test_the_input_is_not_the_output(run: Run, qwen: Path, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"prompt": "a"}\n')
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "in.jsonl")
    for name in ("in.jsonl", "link.jsonl"):
        result = run("batch", tmp_path / "in.jsonl", qwen, "-o", tmp_path / name, "--restart", *QUICK)
        expect_error(result, "both the input and the output")
    assert (tmp_path / "in.jsonl").read_text() == '{"prompt": "a"}\n'


def test_whole_numbers_are_numbers(run: Run, qwen: Path, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"prompt": "a", "temperature": 2, "repetition_penalty": 2}\n')
    result = run("batch", tmp_path / "in.jsonl", qwen, "-n", "3", *QUICK)
    assert result.exit_code == 0, result.output
