"""`moe-local generate`."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import Run, expect_error

QUICK = ("-n", "8", "--temperature", "0", "--context", "128")


def test_json_has_the_promised_fields(run: Run, qwen: Path) -> None:
    result = run("generate", qwen, "-p", "hello", "--json", "--experts", "50%", *QUICK)
    assert result.exit_code == 0, result.output
    out = json.loads(result.stdout)
    assert out["new_tokens"] == 8
    assert out.keys() >= {
        "text",
        "prompt_tokens",
        "new_tokens",
        "tokens_per_second",
        "time_to_first_token",
        "hit_rate",
        "bytes_read",
        "stall_seconds",
        "peak_memory",
    }
    assert 0 < out["hit_rate"] < 1
    assert out["bytes_read"] > 0


def test_prompt_file_and_stdin_agree(run: Run, qwen: Path, tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("hello")
    answers = [
        run("generate", qwen, "-p", "hello", *QUICK),
        run("generate", qwen, "-f", tmp_path / "prompt.txt", *QUICK),
        run("generate", qwen, *QUICK, stdin="hello"),
        run("generate", qwen, "-f", "-", *QUICK, stdin="hello"),
    ]
    assert all(answer.exit_code == 0 for answer in answers)
    assert len({answer.stdout for answer in answers}) == 1


def test_raw_and_template_differ(run: Run, qwen: Path) -> None:
    counts = [
        json.loads(run("generate", qwen, "-p", "hello", "--json", *extra, *QUICK).stdout)["prompt_tokens"]
        for extra in ((), ("--raw",), ("--system", "Be brief."))
    ]
    assert counts[1] < counts[0] < counts[2]


def test_the_seed_decides(run: Run, qwen: Path) -> None:
    sampled = ("-n", "16", "--temperature", "1.5", "--context", "128", "-p", "hello")
    first, again, other = (run("generate", qwen, *sampled, "--seed", seed).stdout for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize(
    ("arguments", "said", "code"),
    [
        (("-p", "x", "--ram", "10MB"), "--ram", 5),
        (("-p", "x", "--ram", "lots"), "'lots' is not a size", 1),
        (("-p", "x", "--ram", "9" * 400), "is not a size", 1),
        (("-p", "x", "--seed", str(1 << 70)), "--seed", 1),
        (("-p", "x", "--repetition-penalty", "nan"), "--repetition-penalty", 1),
        (("-p", "x", "--raw", "--system", "y"), "template", 1),
        (("-p", "caf\udce9"), "not Unicode", 1),
        (("-p", "x", "--experts", "200%"), "share", 1),
        (("-p", "x", "--temperature", "-1"), "--temperature", 1),
        (("-p", "x", "--device", "abacus"), "--device abacus", 1),
        (("-p", "x", "-f", "y"), "both", 1),
        (("-f", "/no/such/file"), "/no/such/file", 1),
        (("-p", ""), "empty", 1),
        (("--raw", "-p", "word " * 200, "--context", "64"), "--context", 1),
    ],
)
def test_bad_options(run: Run, qwen: Path, arguments: tuple[str, ...], said: str, code: int) -> None:
    if arguments == ("-p", ""):
        arguments = ("-p", "", "--raw")
    expect_error(run("generate", qwen, *arguments), said, code=code)


def _truncate(directory: Path) -> None:
    shard = min(directory.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-10])


def _wrong_magic(directory: Path) -> None:
    min(directory.glob("*.safetensors")).write_bytes(b"GGUF" + bytes(100))


def _pickle_only(directory: Path) -> None:
    for file in directory.glob("*.safetensors*"):
        file.unlink()
    (directory / "pytorch_model.bin").write_bytes(b"\x80\x04.")


def _edit_config(**changes: object) -> Callable[[Path], None]:
    def edit(directory: Path) -> None:
        file = directory / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return edit


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_truncate, "is truncated"),
        (_wrong_magic, "not a safetensors file"),
        (_pickle_only, "pickled"),
        (lambda d: (d / "config.json").unlink(), "config.json is missing"),
        (_edit_config(model_type="nonesuch"), "unknown to transformers"),
        (_edit_config(model_type="own", auto_map={"AutoModel": "x.Y"}), "never runs"),
        (_edit_config(moe_intermediate_size=40), "the shape"),
    ],
)
def test_damaged_checkpoints(run: Run, qwen: Path, tmp_path: Path, damage: Callable[[Path], None], said: str) -> None:
    copy = Path(shutil.copytree(qwen, tmp_path / "copy"))
    damage(copy)
    result = run("generate", copy, "-p", "x")
    expect_error(result, said)
    assert str(copy) in result.stderr


def test_names_that_are_nothing(run: Run, tmp_path: Path) -> None:
    expect_error(run("generate", tmp_path / "absent", "-p", "x"), "does not exist", code=3)
    expect_error(run("generate", "no-such-owner/no-such-model", "-p", "x"), "no-such-owner/no-such-model", code=7)


def test_debug_shows_where_it_came_from(run: Run, tmp_path: Path) -> None:
    result = run("--debug", "generate", tmp_path / "absent", "-p", "x")
    assert "Traceback" in result.stderr
    assert result.exit_code == 3


def test_ctrl_c_keeps_what_was_written(process: Callable[..., subprocess.Popen[str]], endless: Path) -> None:
    """The first interrupt ends the answer: what there is is kept, the exit code says so, nothing is spilled."""
    started = process("generate", endless, "-p", "hello", "--context", "100000", "--no-pack")
    assert started.stdout is not None
    first = started.stdout.read(1)
    started.send_signal(signal.SIGINT)
    out, err = started.communicate(timeout=60)
    assert err == ""
    assert started.returncode == 130
    assert (first + out).endswith("\n")


def test_ctrl_c_while_loading(process: Callable[..., subprocess.Popen[str]], endless: Path) -> None:
    started = process("generate", endless, "-p", "hello", "--context", "100000", "--no-pack")
    time.sleep(1)  # somewhere in the imports; wherever it is
    started.send_signal(signal.SIGINT)
    _, err = started.communicate(timeout=60)
    assert err == "error: interrupted\n"
    assert started.returncode == 130


def test_a_reader_that_goes_away(process: Callable[..., subprocess.Popen[str]], qwen: Path) -> None:
    started = process("generate", qwen, "-p", "hello", *QUICK)
    assert started.stdout is not None
    started.stdout.close()
    started.stdout = None
    _, err = started.communicate(timeout=60)
    assert "Traceback" not in err
