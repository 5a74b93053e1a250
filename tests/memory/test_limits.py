"""What the system says about memory, control groups included."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from moe_local.memory import limits
from tests.processes import python

GROUP = Path("/sys/fs/cgroup/memory/moe-local-test")
LIMIT = 512 << 20


def test_limits_are_plausible() -> None:
    total = psutil.virtual_memory().total
    assert 0 < limits.memory_available() <= limits.memory_limit() <= total
    assert 0 < limits.process_memory() <= limits.peak_memory() + (1 << 20)
    assert limits.cores() >= 1


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (("memory.max", "memory.current", "inactive_file"), [(1000, 300), (5000, 4100)]),
        (
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
            [(1000, 300), (5000, 4100)],
        ),
    ],
)
def test_groups_and_their_ancestors(
    tmp_path: Path, files: tuple[str, str, str], expected: list[tuple[int, int]]
) -> None:
    limit, usage, cache = files
    for folder, bound, used in [("a/b", 1000, 400), ("a", 5000, 4200), ("", "max", 9999)]:
        group = tmp_path / folder
        group.mkdir(parents=True, exist_ok=True)
        (group / limit).write_text(f"{bound}\n")
        (group / usage).write_text(f"{used}\n")
        (group / "memory.stat").write_text(f"anon 1\n{cache} 100\n")
    assert list(limits._walk(tmp_path, "/a/b", *files)) == expected
    assert list(limits._walk(tmp_path, "/not/here", *files)) == []


@pytest.fixture
def group() -> Iterator[Path]:
    try:
        GROUP.mkdir()
        (GROUP / "memory.limit_in_bytes").write_text(str(LIMIT))
    except OSError:
        pytest.skip("needs root and version 1 memory control groups")
    yield GROUP
    GROUP.rmdir()


def test_a_real_control_group_is_seen(group: Path) -> None:
    code = (
        f"import os; open('{group}/cgroup.procs', 'w').write(str(os.getpid()))\n"
        "from moe_local.memory import limits; print(limits.memory_limit(), limits.memory_available())"
    )
    limit, available = map(int, python(code).stdout.split())
    assert limit == LIMIT
    assert 0 < available < LIMIT


def test_a_peak_is_the_process_own() -> None:
    """Not that of who started it: for Linux a new program goes on with the figure of the process it was forked of."""
    held = bytearray(os.urandom(1 << 20) * 600)
    done = python("from moe_local.memory.limits import peak_memory; print(peak_memory())")
    assert len(held) > 2 * int(done.stdout)
