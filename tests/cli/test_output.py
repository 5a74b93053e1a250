"""What is printed: no text does more than be read, no encoding ends a command, a reader may go away."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_local.cli import output
from moe_local.testing import architecture, write_tiny_checkpoint
from tests.processes import MOE, Terminal, run

from .conftest import Run, expect_error

CLI = Path(output.__file__).parent
HOSTILE = "a\x1b]0;title\x07b\x1b[2Jc\x08\x7f\x9b31m\u202ed"
SHOWN = r"a\x1b]0;title\x07b\x1b[2Jc\x08\x7f\x9b31m\u202ed"
QUICK = ("--no-pack", "--context", "64", "-n", "12", "--temperature", "1", "--seed", "3")
_PRINTS = re.compile(
    r"typer\.echo|^\s*print\(|rich\.console import (?:.*, )?Console(?:,|$)|std(?:out|err)\.write", re.MULTILINE
)
posix = pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX terminal")


def test_control_characters_are_shown() -> None:
    assert output.visible(HOSTILE) == SHOWN
    assert output.visible("one\ttwo\r\nthree\rfour\n") == "one\ttwo\nthree\\x0dfour\n"
    assert output.visible("名前 שלום 👩\u200d🔬") == "名前 שלום 👩\u200d🔬"
    assert output.visible(os.fsdecode(b"caf\xe9")) == "caf\\xe9"


@given(st.text())
def test_nothing_that_is_shown_is_obeyed(text: str) -> None:
    shown = output.visible(text)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", shown)
    assert output.visible(shown) == shown
    shown.encode()


@given(st.text() | st.sampled_from([HOSTILE, "\udcff", "\ud83d"]), st.sampled_from(["utf-8", "cp1252", "ascii"]))
def test_json_is_valid_in_every_encoding(text: str, encoding: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        raw = io.BytesIO()
        patch.setattr(sys, "__stdout__", sys.__stdout__)
        patch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding, newline="\n"))
        output.prepare_streams()
        output.echo_json({"text": text})
        written = raw.getvalue()
    assert json.loads(written.decode(encoding)) == {"text": text}


def test_a_name_that_is_no_text_is_printed_as_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "__stdout__", sys.__stdout__)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="utf-8"))
    output.prepare_streams()
    output.echo(os.fsdecode(b"/models/caf\xe9"))
    assert raw.getvalue() == b"/models/caf\xe9\n"


def test_commands_print_through_one_place() -> None:
    for file in CLI.glob("*.py"):
        if file.name != "output.py":
            assert not _PRINTS.search(file.read_text()), file


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose tokens are control characters and characters that old encodings lack."""
    where = write_tiny_checkpoint(architecture("qwen3_moe"), tmp_path_factory.mktemp("models") / "talker")
    file = where / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    kept = {token["id"] for token in tokenizer["added_tokens"]} | {tokenizer["model"]["vocab"][c] for c in "axthen"}
    # As byte-level tokenizers spell them: an operating system command, a character of three bytes, one of C1.
    texts = ("\u011b]0;x\u0107", "\u00e4\u00b8\u0143", "\u00c2\u013d")
    tokenizer["model"]["vocab"] = {
        (word if number in kept else f"{texts[number % 3]}{'!' * number}"): number
        for word, number in tokenizer["model"]["vocab"].items()
    }
    tokenizer["model"]["merges"] = []
    file.write_text(json.dumps(tokenizer))
    return where


@posix
def test_a_model_cannot_command_a_terminal(talker: Path, tmp_path: Path) -> None:
    env = {"MOE_LOCAL_HOME": str(tmp_path), "NO_COLOR": "1"}
    terminal = Terminal([*MOE, "generate", talker, "-p", "x", "--raw", *QUICK], env=env)
    assert terminal.finish() == 0, terminal.screen
    assert r"\x1b]0;x\x07" in terminal.screen
    assert "\x1b]" not in terminal.screen and "\x07" not in terminal.screen
    assert r"\x9b" in terminal.screen and "\x9b" not in terminal.screen
    piped = run([*MOE, "generate", talker, "-p", "x", "--raw", *QUICK], env={**os.environ, **env}, text=False)
    assert piped.returncode == 0
    assert b"\x1b]0;x\x07" in piped.stdout
    (tmp_path / "in.txt").write_text("x\n")
    batch = Terminal([*MOE, "batch", tmp_path / "in.txt", talker, "--raw", *QUICK], env=env)
    assert batch.finish() == 0, batch.screen
    assert r"\x9b" in batch.screen and "\x9b" not in batch.screen


@posix
def test_names_cannot_command_a_terminal(qwen: Path, tmp_path: Path) -> None:
    """Folders, shards, and what a chat is told to load."""
    odd = Path(shutil.copytree(qwen, tmp_path / "x\x1b[31m\nerror: y"))
    env = {**os.environ, "MOE_LOCAL_HOME": str(tmp_path / "home"), "TERM": "xterm", "NO_COLOR": "1"}
    shown = Terminal([*MOE, "inspect", odd, "--context", "64"], env=env)
    assert shown.finish() == 0
    assert "\x1b[31m" not in shown.screen
    index = odd / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"] = dict.fromkeys(content["weight_map"], "\x1b]0;x\x07.safetensors")
    index.write_text(json.dumps(content))
    refused = run([*MOE, "inspect", odd], env=env)
    assert refused.returncode == 3
    assert len(refused.stderr.splitlines()) == 1
    assert "\x1b" not in refused.stderr and r"\x1b" in refused.stderr


COMMANDS = ("generate", "chat", "batch", "json", "inspect", "plan", "help", "error")


@pytest.mark.parametrize(
    ("command", "encoding"),
    [
        *((command, "ascii") for command in COMMANDS),
        ("generate", "cp1252"),
        ("chat", "latin-1"),
        ("inspect", "cp437"),
    ],
)
def test_an_encoding_that_lacks_characters(talker: Path, tmp_path: Path, command: str, encoding: str) -> None:
    odd = tmp_path / "名前 ⚙"
    odd.symlink_to(talker)
    (tmp_path / "in.txt").write_text("x\n")
    arguments: dict[str, tuple[object, ...]] = {
        "generate": ("generate", odd, "-p", "x", "--raw", *QUICK),
        "chat": ("chat", odd, *QUICK),
        "batch": ("batch", tmp_path / "in.txt", odd, "--raw", "--json", *QUICK),
        "json": ("generate", odd, "-p", "x", "--raw", "--json", *QUICK),
        "inspect": ("inspect", odd, "--context", "64"),
        "plan": ("plan", odd),
        "help": ("generate", "--help"),
        "error": ("inspect", tmp_path / "名前 2"),
    }
    env = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0", "MOE_LOCAL_HOME": str(tmp_path / "home")}
    done = run([*MOE, *arguments[command]], env=env, text=False, input=b"x\n")
    assert done.returncode == (3 if command == "error" else 0), done.stderr
    assert b"Traceback" not in done.stderr
    if command in ("json", "batch"):
        assert "\u4e2d" in json.loads(done.stdout.splitlines()[0])["text"]


def test_an_error_is_one_line(run: Run, tmp_path: Path) -> None:
    result = run("inspect", f"{tmp_path}/a\nerror: b")
    expect_error(result, "does not exist", code=3)
    assert len(result.stderr.splitlines()) == 1
