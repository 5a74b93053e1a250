"""The first kernel that is tried."""

from __future__ import annotations

import torch

from moe_local.kernels.triton_probe import _sums


def test_it_sums() -> None:
    assert _sums(torch.device("cpu"))
