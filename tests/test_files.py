"""Locks: one holder at a time, whatever ends it, and nothing left behind."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest

from moe_local.files import locked
from tests.processes import read_until, start

posix = pytest.mark.skipif(sys.platform == "win32", reason="filelock's own there")

_COUNTS = """
import sys, time
from pathlib import Path
from moe_local.files import locked
lock, counter = Path(sys.argv[1]), Path(sys.argv[2])
for _ in range(int(sys.argv[3])):
    with locked(lock, waiting=lambda: None):
        number = int(counter.read_text())
        time.sleep(0.0005)
        counter.write_text(str(number + 1))
"""


def test_one_at_a_time_and_nothing_is_left(tmp_path: Path) -> None:
    """Processes that take it in turns, each removing its file, lose no count."""
    (counter := tmp_path / "counter").write_text("0")
    children = [start([sys.executable, "-c", _COUNTS, tmp_path / "lock", counter, 100]) for _ in range(5)]
    assert [child.wait() for child in children] == [0] * 5
    assert counter.read_text() == "500"
    assert list(tmp_path.iterdir()) == [counter]


def test_who_does_not_wait_is_refused(tmp_path: Path) -> None:
    with locked(tmp_path / "lock"):
        with pytest.raises(BlockingIOError), locked(tmp_path / "lock"):
            pass
        assert (tmp_path / "lock").exists()
    with locked(tmp_path / "lock"):
        pass
    assert not (tmp_path / "lock").exists()


@posix
def test_a_killed_holder_lets_go(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from moe_local.files import locked\n"
        "with locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(1000)"
    )
    child = start([sys.executable, "-c", code, tmp_path / "lock"], stdout=-1, text=True)
    assert child.stdout is not None
    read_until(child.stdout, "held")
    child.kill()
    child.wait()
    with locked(tmp_path / "lock"):
        pass
    assert not list(tmp_path.iterdir())


@posix
def test_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "lock").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match=os.strerror(errno.ELOOP)), locked(tmp_path / "lock"):
        pass
    assert (tmp_path / "precious").read_text() == "mine"
