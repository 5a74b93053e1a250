"""Tests that run in processes of their own (`test_triton_interpreted.py`): Triton interprets in all of one or none.

By hand: `TRITON_INTERPRET=1 pytest tests/kernels/interpreted`.
"""

from __future__ import annotations

import os

import pytest
import torch

from moe_local.kernels import triton_dense, triton_experts

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]


@pytest.fixture(autouse=True)
def _bf16_without_cores(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter multiplies bf16 matrices by the bits of their numbers; as older GPUs do it, it is right."""
    dtype = getattr(request.node, "callspec", None) and request.node.callspec.params.get("dtype")
    for module in (triton_dense, triton_experts):
        monkeypatch.setattr(module, "has_triton_cores", lambda device: dtype is not torch.bfloat16)
