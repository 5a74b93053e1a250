"""A command in a memory cgroup of so many bytes, page cache included, begun with a dropped page cache.

Needs Linux and root; cgroups of version 1 or 2.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

V1, V2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Finished:
    """What a command left: its exit status (negative: killed by that signal), output, and most resident bytes."""

    status: int
    stdout: str
    peak: int


def drop_caches() -> None:
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def run(command: list[str], limit: int | None) -> Finished:
    """Runs a command held to `limit` bytes from its first instruction on, or not held at all."""
    drop_caches()
    with group(limit) as folder:
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=joining(folder)) as started:
            assert started.stdout is not None
            stdout = started.stdout.read()
            _, status, used = os.wait4(started.pid, 0)
            started.returncode = os.waitstatus_to_exitcode(status)
        return Finished(started.returncode, stdout, used.ru_maxrss * 1024)


def joining(folder: Path | None) -> Callable[[], None]:
    """What has a child join a group before it begins."""

    def join() -> None:
        if folder is not None:
            (folder / "cgroup.procs").write_text(str(os.getpid()))

    return join


@contextmanager
def group(limit: int | None) -> Iterator[Path | None]:
    """A memory cgroup's folder; None where there is no limit."""
    if limit is None:
        yield None
        return
    root, file = (V1, "memory.limit_in_bytes") if V1.is_dir() else (V2, "memory.max")
    folder = root / f"moe-local-benchmark-{os.getpid()}"
    folder.mkdir(exist_ok=True)
    (folder / file).write_text(str(limit))
    try:
        yield folder
    finally:
        with suppress(OSError):
            folder.rmdir()
