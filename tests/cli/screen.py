"""A chat at a terminal of its own, seen as its user sees it."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

from tests.processes import MOE, PATIENCE

PROMPT = re.escape("\x1b[?2004h")  # prompt_toolkit asks for bracketed pastes as it begins to read
STATUS = r"tokens/s[^\n]*\n"
_CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")

Open = Callable[..., "Screen"]


class Screen:
    """A chat at a terminal of so many columns."""

    def __init__(self, folder: Path, arguments: tuple[object, ...], columns: int, env: dict[str, str]) -> None:
        import pexpect

        self.folder = folder
        self.child = pexpect.spawn(
            MOE[0],
            [*MOE[1:], "chat", *map(str, arguments)],
            env={
                **{name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")},
                "TERM": "xterm",
                "OMP_NUM_THREADS": "1",
                "HF_HUB_OFFLINE": "1",
                "PROMPT_TOOLKIT_NO_CPR": "1",  # nobody here would answer where the cursor is
                "MOE_LOCAL_HOME": str(folder / "home"),
                **env,
            },
            dimensions=(24, columns),
            encoding="utf-8",
            timeout=PATIENCE,
            cwd=str(folder),
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def until(self, pattern: str) -> str:
        """What came until the pattern did, without what moves the cursor."""
        self.child.expect(pattern)
        return _CODES.sub("", self.child.before + self.child.after).replace("\r", "")

    def prompt(self) -> str:
        return self.until(PROMPT)

    def loaded(self) -> str:
        """What is shown till the model is there, and the prompt below it."""
        return self.until("/exit to leave") + self.prompt()

    def type(self, keys: str) -> None:
        self.child.send(keys)

    def command(self, line: str) -> str:
        """What a command shows."""
        self.type(f"{line}\r")
        return self.prompt()

    def say(self, keys: str) -> str:
        """The answer, and the line below."""
        self.type(f"{keys}\r")
        answer = self.until(STATUS)
        self.prompt()
        return answer

    def said(self) -> list[str]:
        """What the user has said so far."""
        self.command("/save talk.json")
        messages = json.loads((self.folder / "talk.json").read_text())
        return [message["content"] for message in messages if message["role"] == "user"]

    def end(self) -> int | None:
        import pexpect

        self.child.expect(pexpect.EOF)
        self.child.close()
        status: int | None = self.child.exitstatus
        return status


def quick(model: Path) -> tuple[object, ...]:
    return (model, "--no-pack", "-n", "3", "--temperature", "0", "--context", "512")
