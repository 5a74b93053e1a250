"""Which activation a module computes is told from its numbers."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.activations import ACT2FN

from moe_local.kernels.gating import Gating, recognise

NOTHING = SimpleNamespace()
ALPHA, LIMIT = 1.702, 7.0


def _halves(x: Tensor) -> tuple[Tensor, Tensor]:
    gate, up = x.chunk(2, dim=-1)
    return gate, up


def _gpt_oss(x: Tensor) -> Tensor:
    gate, up = x[..., ::2].clamp(max=LIMIT), x[..., 1::2].clamp(-LIMIT, LIMIT)
    return (up + 1) * gate * torch.sigmoid(gate * ALPHA)


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("silu", "silu"), ("gelu", "gelu"), ("gelu_pytorch_tanh", "gelu_tanh"), ("gelu_new", "gelu_tanh"),
        ("relu", "relu"), ("relu2", "relu_squared"),
    ],
)  # fmt: skip
def test_activations_of_transformers(name: str, ours: str) -> None:
    act = ACT2FN[name]
    assert recognise(lambda x: act(_halves(x)[0]) * _halves(x)[1], NOTHING) == Gating(ours)
    assert recognise(lambda x: act(x[..., ::2]) * x[..., 1::2], NOTHING) == Gating(ours, interleaved=True)
    assert recognise(act, NOTHING) == Gating(ours, gated=False)


def test_gpt_oss() -> None:
    module = SimpleNamespace(alpha=ALPHA, limit=LIMIT)
    assert recognise(_gpt_oss, module) == Gating("clamped_swiglu", interleaved=True, alpha=ALPHA, limit=LIMIT)


@pytest.mark.parametrize(
    "activate",
    [
        lambda x: F.mish(_halves(x)[0]) * _halves(x)[1],
        lambda x: F.silu(_halves(x)[1]) * _halves(x)[0],  # the other way round
        lambda x: F.silu(_halves(x)[0].clamp(max=10)) * _halves(x)[1],
        lambda x: F.silu(_halves(x)[0]) * _halves(x)[1] * 1.001,
        lambda x: x.view(3, -1),
        _gpt_oss,  # of a module that does not tell its numbers
    ],
)
def test_what_is_not_ours(activate: object) -> None:
    assert recognise(activate, NOTHING) is None  # type: ignore[arg-type]
