"""`moe-local chat`, line by line from a pipe and at a terminal."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import sys
import time
from pathlib import Path

import pytest

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


pty = pytest.importorskip("pty") if sys.platform != "win32" else None


class Terminal:
    """`moe-local` on a terminal of its own."""

    def __init__(self, *arguments: object, home: Path) -> None:
        self.pid, self.fd = os.forkpty()
        if self.pid == 0:
            environment = {**os.environ, "MOE_LOCAL_HOME": str(home), "TERM": "xterm", "OMP_NUM_THREADS": "1"}
            command = [sys.executable, "-m", "moe_local.cli.main", *map(str, arguments)]
            os.execve(sys.executable, command, environment)
        self.screen = ""

    def wait_for(self, pattern: str, seconds: float = 40) -> str:
        """Reads until the pattern has come after what was waited for before; returns what came."""
        deadline = time.monotonic() + seconds
        while not (found := re.search(pattern, self.screen)):
            readable, _, _ = select.select([self.fd], [], [], max(0, deadline - time.monotonic()))
            assert readable, f"no {pattern!r} in {self.screen!r}"
            self.screen += os.read(self.fd, 4096).decode(errors="replace")
        seen, self.screen = self.screen[: found.end()], self.screen[found.end() :]
        return seen

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def finish(self) -> int:
        while True:
            try:
                if not os.read(self.fd, 4096):
                    break
            except OSError:
                break
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def test_at_a_terminal(endless: Path, tmp_path: Path) -> None:
    """A status line; Ctrl-C stops the answer and not the chat; errors do not end it; history is kept."""
    terminal = Terminal("chat", endless, "--context", "100000", home=tmp_path)
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
