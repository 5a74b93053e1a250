"""Whether a first Triton kernel runs, and what is said where it does not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from moe_local.kernels import triton_probe
from moe_local.kernels.triton_probe import trouble, usable

GPU = torch.device("cuda:0")


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    trouble.cache_clear()
    yield
    trouble.cache_clear()


def test_a_cpu_needs_none() -> None:
    assert not usable(torch.device("cpu"))


def test_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_probe, "missing", lambda: "triton is not installed")
    assert trouble(GPU) == "triton is not installed" and not usable(GPU)


def test_a_kernel_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(device: torch.device) -> bool:
        raise RuntimeError("Failed to find C compiler.\nPlease specify via CC")

    monkeypatch.setattr(triton_probe, "missing", lambda: None)
    monkeypatch.setattr(triton_probe, "_sums", fail)
    assert trouble(GPU) == "Triton's first kernel failed (RuntimeError: Failed to find C compiler.)"
    assert not usable(GPU)


@pytest.mark.parametrize("right", [True, False])
def test_a_kernel_that_runs(right: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_probe, "missing", lambda: None)
    monkeypatch.setattr(triton_probe, "_sums", lambda device: right)
    assert usable(GPU) == right


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    assert trouble(GPU) is None
