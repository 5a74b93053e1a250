"""`moe-local chat`, line by line from a pipe and at a terminal."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest

from tests.processes import MOE, Terminal

from .conftest import Run, expect_error

QUICK = ("-n", "6", "--temperature", "0", "--context", "256")


def test_a_conversation_from_a_pipe(run: Run, qwen: Path, tmp_path: Path) -> None:
    saved = tmp_path / "talk.json"
    lines = [
        "/help",
        "Hello",
        "",
        "And?",
        "/regenerate",
        "/system Be kind.",
        "/system",
        f"/save {saved}",
        "/reset",
        f"/load {saved}",
        "/stats",
        "/exit",
        "never said",
    ]
    result = run("chat", qwen, *QUICK, stdin="\n".join(lines))
    assert result.exit_code == 0, result.output
    roles = [message["role"] for message in json.loads(saved.read_text())]
    assert roles == ["system", *["user", "assistant"] * 2]
    assert "/regenerate" in result.stdout
    assert "Be kind." in result.stdout
    assert "(5 messages loaded)" in result.stdout
    assert '"hit_rate"' in result.stdout


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/dance", "/dance"),
        ("/save", "which file"),
        ("/load /no/such", "/no/such"),
        ("/regenerate", "no answer"),
    ],
)
def test_bad_commands_end_a_script(run: Run, qwen: Path, line: str, said: str) -> None:
    result = run("chat", qwen, *QUICK, stdin=f"{line}\n")
    expect_error(result, said)


def test_the_end_of_input_leaves(run: Run, qwen: Path) -> None:
    assert run("chat", qwen, *QUICK, stdin="").exit_code == 0


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX terminal")
def test_at_a_terminal(endless: Path, tmp_path: Path) -> None:
    """A status line; Ctrl-C stops the answer and not the chat; errors do not end it; history is kept."""
    terminal = Terminal([*MOE, "chat", endless, "--context", "100000"], env={"MOE_LOCAL_HOME": str(tmp_path)})
    terminal.wait_for(r"/help for help.*\n")
    terminal.wait_for("> ")
    terminal.type("/dance\n")
    terminal.wait_for("error: there is no command /dance")
    terminal.wait_for("> ")
    terminal.type("Hello\n")
    terminal.wait_for("Hello\r\n.")
    os.kill(terminal.pid, signal.SIGINT)
    seen = terminal.wait_for(r"tokens/s .* hits .* of .*\n")
    assert "Traceback" not in seen
    terminal.wait_for("> ")
    terminal.type("/exit\n")
    assert terminal.finish() == 0
    assert "/dance" in (tmp_path / "chat_history").read_text()
