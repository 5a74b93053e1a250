"""How torch's threads wait, and how many there are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from moe_local import Options, load
from moe_local.errors import MoeLocalError
from moe_local.threads import SPINS, wait_asleep


def test_they_spin_for_a_moment_only() -> None:
    environment: dict[str, str] = {}
    wait_asleep(environment)
    assert environment == {"GOMP_SPINCOUNT": str(SPINS)}


@pytest.mark.parametrize("said", [{"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "ACTIVE"}])
def test_what_the_user_said_stands(said: dict[str, str]) -> None:
    environment = dict(said)
    wait_asleep(environment)
    assert environment == said


@pytest.mark.skipif(sys.platform != "linux", reason="libgomp, of torch's builds for Linux")
@pytest.mark.parametrize("start", ["import moe_local", "import moe_local.cli.main", "from moe_local import load"])
def test_libgomp_is_told_in_time(start: str) -> None:
    """libgomp shows at its loading what it has read."""
    code = f"{start}; import torch"
    environment = {"OMP_DISPLAY_ENV": "VERBOSE", "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)
    assert f"GOMP_SPINCOUNT = '{SPINS}'" in done.stderr


def test_threads_are_as_many_as_asked_for(qwen: Path) -> None:
    before = torch.get_num_threads()
    try:
        with load(qwen, Options(context=64, threads=3)):
            assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [0, -1, 1 << 40])
def test_threads_that_make_no_sense(threads: int) -> None:
    with pytest.raises(MoeLocalError, match="--threads"):
        Options(threads=threads)
