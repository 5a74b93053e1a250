"""How much memory this process may have: the machine's, and what control groups leave of it."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

_CGROUPS = Path("/sys/fs/cgroup")
_UNLIMITED = 1 << 60


def memory_limit() -> int:
    """Bytes of RAM that exist for this process: physical memory or the tightest control group."""
    total: int = psutil.virtual_memory().total
    return min([total, *(limit for limit, _ in _groups())])


def memory_available() -> int:
    """Bytes of RAM that can still be taken without swapping or being killed, page cache counted as free."""
    available: int = psutil.virtual_memory().available
    return max(0, min([available, *(limit - used for limit, used in _groups())]))


def process_memory() -> int:
    """Bytes of RAM that this process holds now."""
    return int(psutil.Process().memory_info().rss)


def peak_memory() -> int:
    """The most bytes of RAM that this process has held."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    # Linux's getrusage goes on from what the process that this one was forked of had held.
    if sys.platform == "linux" and (own := re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())):
        return int(own[1]) << 10
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _groups() -> Iterator[tuple[int, int]]:
    """(limit, use that cannot be reclaimed) in bytes of each control group above this process that has a limit."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            yield from _walk(_CGROUPS, path, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            yield from _walk(
                _CGROUPS / "memory",
                path,
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                "total_inactive_file",
            )


def _walk(root: Path, path: str, limit: str, usage: str, cache: str) -> Iterator[tuple[int, int]]:
    """The group at `path` and its ancestors; only the root where the path is another namespace's."""
    group = root / path.lstrip("/")
    if not group.is_dir():
        group = root
    for folder in (group, *group.parents):
        if not folder.is_relative_to(root):
            return
        try:
            bound = int((folder / limit).read_text())
            used = int((folder / usage).read_text()) - _statistic(folder, cache)
        except (OSError, ValueError):  # no such file at the root, or "max"
            continue
        if bound < _UNLIMITED:
            yield bound, max(0, used)


def _statistic(folder: Path, name: str) -> int:
    for line in (folder / "memory.stat").read_text().splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return 0


def cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
