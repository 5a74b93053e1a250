"""Tests that run in processes of their own (`test_triton_interpreted.py`): Triton interprets in all of one or none.

By hand: `TRITON_INTERPRET=1 pytest tests/kernels/interpreted`.
"""

from __future__ import annotations

import os

import pytest

from moe_local.kernels import triton_dense, triton_experts

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]


@pytest.fixture(autouse=True)
def _no_bf16_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter multiplies bf16 matrices by the bits of their numbers; as older GPUs do it, it is right."""
    for module in (triton_dense, triton_experts):
        monkeypatch.setattr(module, "has_bf16_cores", lambda device: False)
