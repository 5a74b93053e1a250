"""What hands do at a chat's prompt, on a real terminal: what was said is read from what /save wrote."""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path

import pytest
from rich.cells import cell_len

from tests.cli.screen import STATUS, Open, quick

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX terminal")


def test_habits_of_typing(qwen: Path, open_chat: Open, tmp_path: Path) -> None:
    editor = tmp_path / "editor.py"
    editor.write_text("import sys; f = open(sys.argv[1], 'a'); f.write(' and\\nedited\\n'); f.close()")
    screen = open_chat(*quick(qwen), VISUAL=f"{sys.executable} {editor}", EDITOR="false")
    screen.loaded()

    screen.say("\x1b[200~def f():\r\n    return 1 \\\r\n\r\nWhat is it?\x1b[201~")
    screen.say('"""\rone\r\rtwo\\\r"""')
    screen.say("go \\\ron")
    screen.say("//etc is a folder")
    screen.type("/edit begun\r")
    screen.prompt()
    screen.say("")
    assert screen.said() == [
        "def f():\n    return 1 \\\n\nWhat is it?",
        "one\n\ntwo\\",
        "go \non",
        "/etc is a folder",
        "begun and\nedited",
    ]

    screen.type("never said\x03")
    screen.type("\x03")  # the line is empty now
    assert "/bye leaves" in screen.prompt()
    screen.say("\x1b[A\x1b[A!")  # up, over /save
    screen.type("typed\rahead\r")
    screen.until(STATUS)
    screen.until(STATUS)
    screen.prompt()
    assert screen.said()[5:] == ["begun and\nedited!", "typed", "ahead"]

    (tmp_path / "a folder").mkdir()
    (tmp_path / "a folder" / "kept.json").write_text('[{"role": "user", "content": "kept"}]')
    screen.type("/lo\ta\tk\t\r")
    assert "(1 messages loaded)" in screen.prompt()
    screen.type("/re\t")
    assert {"regen", "reset", "reasoning"} <= set(screen.prompt().split())  # as readline lists them
    screen.type("\x03")
    screen.command("/set temp\t 0.5")
    assert "0.5" in screen.command("/set temperature")

    screen.type("not said either\x03\x04")
    assert screen.end() == 0
    history = (tmp_path / "home" / "chat_history").read_text()
    assert "+//etc is a folder" in history and "+/save talk.json" in history

    again = open_chat(*quick(qwen))
    again.prompt()
    again.type("/bye\r")
    assert again.end() == 0


@pytest.fixture
def wordy(endless: Path) -> Path:
    """A model that says words of two to nine letters, and does not end."""
    file = endless / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    kept = {token["id"] for token in tokenizer["added_tokens"]} | {tokenizer["model"]["vocab"][c] for c in "aHelo"}
    tokenizer["model"]["vocab"] = {
        word if number in kept else f"\u0120{chr(97 + number % 26)}{number:o}{'z' * (number % 7)}": number
        for word, number in tokenizer["model"]["vocab"].items()
    }
    tokenizer["model"]["merges"] = []
    file.write_text(json.dumps(tokenizer))
    return endless


def test_a_window_that_changes(wordy: Path, open_chat: Open) -> None:
    """Words stay whole, the line below fits, and Ctrl-C stops an answer."""
    screen = open_chat(wordy, "--no-pack", "-n", "60", "--context", "4096", columns=40)
    assert cell_len(screen.until("loading[^\r]*\r").strip()) <= 40
    screen.loaded()
    for columns in (40, 25):
        screen.child.setwinsize(24, columns)
        screen.type("Hello\r")
        screen.until("\n")
        *answer, status, _ = screen.until(STATUS).split("\n")
        assert len(answer) > 5
        assert all(cell_len(line) <= columns for line in [*answer, status])
        assert all(re.fullmatch(r"([a-z][0-7]+z*|[aHelo ])*", line) for line in answer)  # no word is in two lines
        assert ("of 4096" in status) == (columns == 40)
        screen.prompt()
    screen.child.setwinsize(24, 120)
    screen.command("/set max-new-tokens default")
    screen.type("Hello\r")
    time.sleep(0.5)
    screen.type("\x03")
    *answer, status, _ = screen.until(STATUS).split("\n")
    assert "context" in status and "hits" in status and "first after" in status
    assert "Traceback" not in "".join(answer)
    screen.prompt()
    screen.type("\x04")
    assert screen.end() == 0


def test_the_model_is_named_before_torch_is_there(qwen: Path, open_chat: Open) -> None:
    screen = open_chat(*quick(qwen), PYTHONPROFILEIMPORTTIME="1")
    before = screen.until("loading")
    assert "typer" in before
    assert not re.search(r"\| +(torch|transformers|prompt_toolkit)\s", before)
    screen.prompt()
    screen.type("\x04")
    assert screen.end() == 0
