"""Every Triton kernel compiles for the GPUs that people have; those for few rows spill nothing. Prints figures."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from moe_local.kernels import triton_matrix
from tests.kernels.triton_layers import ENCODINGS
from tests.processes import run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(triton_matrix.missing() is not None, reason="triton is not installed"),
    pytest.mark.skipif(sys.platform != "linux", reason="triton for Linux has the tools that read what was compiled"),
]
ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("name", ENCODINGS)
def test_kernels_for_every_gpu(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-m", "tests.kernels.triton_compiled", name]
    done = run(command, env=environment, timeout=3600, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    figures = [json.loads(line) for line in done.stdout.splitlines()]
    with capsys.disabled():
        print(f"\n{done.stdout}")
    assert {figure["target"] for figure in figures} == {75, 80, 86, 89, 90, 120}
    vectors = [figure for figure in figures if figure["kernel"].endswith("_vector")]
    assert vectors and all(figure["stack"] == 0 and figure["wide_loads"] > 0 for figure in vectors)
    assert all(figure["shared"] <= 256 for figure in vectors)  # nothing changes its layout in a loop
    assert not any(figure["flushes"] for figure in figures)  # small floats are subnormal ones on their way
