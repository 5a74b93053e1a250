"""The servers that run on this machine: each leaves a file that says so, and takes it away. Imports nothing heavy."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from moe_local.errors import MoeLocalError
from moe_local.files import atomic_write
from moe_local.paths import cache_dir

_CLOCK = 2.0  # seconds by which the time of a process's start moves when the clock is set


@dataclass(frozen=True)
class Running:
    """A server that runs on this machine, as others find it."""

    pid: int
    url: str
    model: str
    started: float  # seconds since 1970, of the process


class Announcement:
    """Tells others of this process's server: in the list of those that run, and by `ready_file`."""

    def __init__(self, url: str, model: str, ready_file: Path | None) -> None:
        self._running = Running(os.getpid(), url, model, psutil.Process().create_time())
        self._files = [_folder() / f"{os.getpid()}.json", *([ready_file] if ready_file is not None else [])]

    def make(self) -> None:
        """From now on it answers. Raises MoeLocalError where a file cannot be written."""
        for file in self._files:
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                with atomic_write(file) as stream:
                    stream.write(json.dumps(asdict(self._running)).encode())
            except (OSError, ValueError) as error:
                raise _unwritable(file, error) from error

    def withdraw(self) -> None:
        """It does not any more."""
        for file in self._files:
            with suppress(OSError, ValueError):
                file.unlink()


def clear(ready_file: Path) -> None:
    """Takes away what a server that was killed left behind: the one that begins does not answer yet.

    Raises MoeLocalError where the file is somebody else's, or cannot be one.
    """
    try:
        if ready_file.exists() and not _is_left_behind(ready_file):
            raise MoeLocalError(f"{ready_file} is there already, and is no ready file", remedy="choose another place")
        ready_file.unlink(missing_ok=True)
    except (OSError, ValueError) as error:
        raise _unwritable(ready_file, error) from error


def _unwritable(file: Path, error: Exception) -> MoeLocalError:
    """ValueErrors are of names that no file can have."""
    reason = getattr(error, "strerror", None) or str(error)
    return MoeLocalError(f"cannot write {file} ({reason})", remedy="choose another place")


def _is_left_behind(file: Path) -> bool:
    """Whether a server wrote it, or nobody anything."""
    if not file.is_file():
        return False
    try:
        text = file.read_text()
        return not text or bool(Running(**json.loads(text)))
    except (ValueError, TypeError):
        return False


def servers() -> list[Running]:
    """Those that run, the oldest first; what others left behind that ended otherwise goes."""
    found = []
    for file in _folder().glob("*.json") if _folder().is_dir() else ():
        try:
            running = Running(**json.loads(file.read_text()))
            alive = abs(psutil.Process(running.pid).create_time() - running.started) < _CLOCK
        except (OSError, ValueError, TypeError, psutil.Error):
            alive = False
        if alive:
            found.append(running)
        else:
            with suppress(OSError):
                file.unlink()
    return sorted(found, key=lambda each: each.started)


def end(running: Running, seconds: float) -> bool:
    """Has a server end, after the answers under way; whether it did within so many seconds."""
    try:
        process = psutil.Process(running.pid)
        process.terminate()
        process.wait(seconds)
    except psutil.NoSuchProcess:
        return True
    except psutil.TimeoutExpired:
        return False
    return True


def _folder() -> Path:
    return cache_dir() / "servers"
