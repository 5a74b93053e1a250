"""Processes that tests start: none outlives its test or the runner, and Ctrl-C reaches each as at a terminal.

A runner in a shell's background has SIGINT ignored, and its children would inherit that.
"""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

MOE = (sys.executable, "-m", "moe_local.cli.main")
PATIENCE = 180.0  # seconds: far more than anything here takes, on two busy cores too

# Runs in the child before the program: Ctrl-C as usual, a terminal as the one that Ctrl-C is typed at, and (on Linux)
# the end when whoever started it has ended.
_LAUNCHER = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
if os.isatty(0):
    import fcntl, termios
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
if sys.platform == "linux":
    import ctypes
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
os.execvp(sys.argv[1], sys.argv[1:])
"""
_started: list[subprocess.Popen[Any]] = []


def start(command: Sequence[object], **options: Any) -> subprocess.Popen[Any]:
    """Starts a command in a session of its own; `end_all` ends it and what it started."""
    words = [str(word) for word in command]
    if os.name == "posix":
        words = [sys.executable, "-I", "-S", "-c", _LAUNCHER, *words]
    child = subprocess.Popen(words, start_new_session=True, **options)
    _started.append(child)
    return child


def run(
    command: Sequence[object], *, input: str | bytes | None = None, timeout: float = PATIENCE, **options: Any
) -> subprocess.CompletedProcess[Any]:
    """Runs a command to its end, with its output as text unless `text` says otherwise."""
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    stdin = subprocess.DEVNULL if input is None else subprocess.PIPE
    child = start(command, **{"stdin": stdin, **piped, **options})
    try:
        out, err = child.communicate(input, timeout=timeout)
    finally:
        _end(child)
    return subprocess.CompletedProcess(child.args, child.returncode, out, err)


def python(code: str, *arguments: object, **options: Any) -> subprocess.CompletedProcess[Any]:
    """Runs a piece of Python in a process of its own, which must succeed."""
    done = run([sys.executable, "-c", code, *arguments], **options)
    assert done.returncode == 0, done.stderr
    return done


def end_all() -> None:
    """Kills whatever is left of what was started, with its children."""
    while _started:
        _end(_started.pop())


def _end(child: subprocess.Popen[Any]) -> None:
    if os.name == "posix":
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)  # its group goes by its number, also when it has ended itself
    elif child.poll() is None:
        child.kill()
    for stream in (child.stdin, child.stdout, child.stderr):
        with suppress(OSError, ValueError):
            if stream is not None:
                stream.close()
    child.wait(PATIENCE)


def wait_until(
    happened: Callable[[], object], child: subprocess.Popen[Any] | None = None, seconds: float = PATIENCE
) -> None:
    """Waits for something that a child does. Fails when the child ends first, or never does it."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert child is None or child.poll() is None, "it ended"
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)


def read_until(stream: IO[str], pattern: str) -> str:
    """Lines of a child's output, up to the one that matches."""
    seen = ""
    while line := stream.readline():
        seen += line
        if re.search(pattern, line):
            return seen
    raise AssertionError(f"no {pattern!r} in {seen!r}")


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, command: Sequence[object], *, env: dict[str, str] | None = None) -> None:
        import pty

        self.fd, inside = pty.openpty()
        environment = {**os.environ, "TERM": "xterm", "OMP_NUM_THREADS": "1", **(env or {})}
        self.child = start(command, stdin=inside, stdout=inside, stderr=inside, env=environment)
        os.close(inside)
        self.screen = ""

    @property
    def pid(self) -> int:
        return self.child.pid

    def wait_for(self, pattern: str, seconds: float = PATIENCE) -> str:
        """Reads until the pattern has come after what was waited for before; returns what came."""
        deadline = time.monotonic() + seconds
        while not (found := re.search(pattern, self.screen)):
            readable, _, _ = select.select([self.fd], [], [], max(0, deadline - time.monotonic()))
            assert readable, f"no {pattern!r} in {self.screen!r}"
            self.screen += self._read()
        seen, self.screen = self.screen[: found.end()], self.screen[found.end() :]
        return seen

    def _read(self) -> str:
        return os.read(self.fd, 4096).decode(errors="replace")

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def finish(self) -> int:
        """The exit code, once it ended; what it wrote till then is added to `screen`."""
        deadline = time.monotonic() + PATIENCE
        with suppress(OSError):  # Linux's way to say that nobody writes there any more
            while select.select([self.fd], [], [], max(0, deadline - time.monotonic()))[0] and (
                piece := self._read()
            ):
                self.screen += piece
        os.close(self.fd)
        return self.child.wait(PATIENCE)


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """A real file system of so many bytes. Skips the test where that is not allowed."""
    import pytest

    folder.mkdir()
    if run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder]).returncode:
        pytest.skip("needs root to mount a small file system")
    try:
        yield folder
    finally:
        end_all()  # nobody may be in it
        assert run(["umount", folder]).returncode == 0
