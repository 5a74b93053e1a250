"""Commands on a device with memory of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from moe_local.kernels import native
from moe_local.testing.pretend_cuda import PretendCuda, can_pretend, pretend_cuda
from moe_local.units import GIB, MIB

from .conftest import Run

pytestmark = pytest.mark.skipif(not can_pretend(), reason="torch has CUDA kernels of its own")


@pytest.fixture
def gpu() -> Iterator[PretendCuda]:
    with pretend_cuda(memory=8 * GIB, others=3 * GIB) as device:
        yield device


def test_doctor_suggests_what_would_be_chosen(gpu: PretendCuda, run: Run, qwen: Path) -> None:
    suggested = json.loads(run("doctor", "--json").stdout)["chosen"]
    chosen = json.loads(run("inspect", qwen, "--json").stdout)
    assert suggested["device"] == "cuda"
    assert suggested["vram"] == chosen["vram_budget"] < 5 * GIB + GIB // 2


def test_memory_that_runs_out_ends_as_a_budget_that_is_too_small(gpu: PretendCuda, run: Run, qwen: Path) -> None:
    """Another program takes what was free when the plan was made."""
    free = gpu.memory.total - gpu.memory.others
    gpu.memory.others += free - MIB // 4
    gpu.free_said = free
    result = run("generate", qwen, "-p", "hello", "-n", "4", "--no-pack")
    assert result.exit_code == 5
    assert "no memory left" in result.stderr and "MiB" in result.stderr and "--vram" in result.stderr


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_dtype_does_not_keep_from_packing(run: Run, qwen: Path, dtype: str) -> None:
    result = run("generate", qwen, "-p", "hello", "-n", "4", "--dtype", dtype)
    assert result.exit_code == 0
    assert len(json.loads(run("list", "--json").stdout)) == 1


def test_float32_reads_the_original(run: Run, qwen: Path) -> None:
    assert run("generate", qwen, "-p", "hello", "-n", "4", "--dtype", "float32").exit_code == 0
    assert json.loads(run("list", "--json").stdout) == []


@pytest.mark.skipif(native.missing() is not None, reason="needs kernels for the CPU")
def test_a_calibration_is_shown_and_then_chosen_by(gpu: PretendCuda, run: Run, qwen: Path) -> None:
    shown = run("doctor", "--calibrate")
    assert shown.exit_code == 0, shown.stderr
    assert "uploads" in shown.stdout and "GB/s" in shown.stdout and "calibration.json" in shown.stdout
    given = ("generate", qwen, "-p", "hello", "-n", "4", "--experts", "50%", "--json")
    assert run(*given).exit_code == 0
    for misses in ("upload", "cpu"):
        assert run(*given, "--misses", misses).exit_code == 0
    refused = run(*given, "--misses", "gpu")
    assert refused.exit_code != 0 and "use auto, upload, cpu" in refused.stderr


def test_a_calibration_needs_a_gpu(run: Run) -> None:
    result = run("doctor", "--calibrate")
    assert result.exit_code != 0 and "no GPU" in result.stderr
