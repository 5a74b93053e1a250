"""The Triton kernels' numbers without a GPU: the tests that Triton's interpreter runs, in processes of their own."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from moe_local.kernels import triton_matrix
from tests.processes import python, run

pytestmark = pytest.mark.skipif(triton_matrix.missing() is not None, reason="triton is not installed")
FOLDER = Path(__file__).parent / "interpreted"
ENVIRONMENT = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
@pytest.mark.parametrize("file", sorted(FOLDER.glob("test_*.py")), ids=lambda file: file.stem)
def test_all_numbers(file: Path) -> None:
    command = [sys.executable, "-m", "pytest", file, "-p", "no:cacheprovider"]
    done = run(command, env=ENVIRONMENT, timeout=3600, cwd=FOLDER.parent.parent.parent)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("tokens", [2, 12])
def test_a_layer(tokens: int) -> None:
    code = (
        "import sys, torch\n"
        "from tests.kernels.triton_layers import ENCODINGS, Layer, check, clamped\n"
        "for name in ('int4-32', 'mxfp4'):\n"
        "    layer = Layer(ENCODINGS[name], clamped(interleaved=True), 64, 64, bias=torch.bfloat16)\n"
        "    check(layer, int(sys.argv[1]), 2, waves=2)\n"
    )
    python(code, tokens, env=ENVIRONMENT, cwd=FOLDER.parent.parent.parent)


def test_nothing_imports_triton_before_a_gpu_is_met() -> None:
    code = "import sys, moe_local.kernels.matrix, moe_local.kernels.expert\nassert 'triton' not in sys.modules"
    python(code)
