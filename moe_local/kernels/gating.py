"""What a module does between up and down, recognised by what it computes, so that native kernels can do the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Activate = Callable[[Tensor], Tensor]  # [rows, outputs of gate and up] -> [rows, inputs of down]
_INNER = 32  # numbers of a row that the module is tried on


@dataclass(frozen=True)
class Gating:
    """An activation by the native kernels' name, of one number or of a gate and what it lets through.

    `interleaved`: gate and up take turns. `alpha` and `limit` are gpt-oss's.
    """

    activation: str
    gated: bool = True
    interleaved: bool = False
    alpha: float = 0.0
    limit: float = 0.0


_ACTIVATIONS: dict[str, Activate] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "relu_squared": lambda x: F.relu(x).square(),
    "none": lambda x: x,
}


def recognise(activate: Activate, module: Any) -> Gating | None:
    """Which gating `activate`, of `module`, is; None for one that the kernels do not have."""
    probe = torch.linspace(-12, 12, 16 * 2 * _INNER).view(2 * _INNER, 16).T.roll(7, dims=1).contiguous()
    try:
        with torch.no_grad():
            found = activate(probe.clone())
    except Exception:  # it takes numbers of one shape or type only
        return None
    for gating, same in _candidates(module):
        expected = same(probe)
        if expected.shape == found.shape and torch.allclose(expected, found.float(), rtol=1e-4, atol=5e-5):
            return gating
    return None


def _candidates(module: Any) -> Iterator[tuple[Gating, Activate]]:
    for name, act in _ACTIVATIONS.items():
        yield Gating(name, gated=False), act
        yield Gating(name), lambda x, act=act: act(x[:, :_INNER]) * x[:, _INNER:]  # type: ignore[misc]
        yield Gating(name, interleaved=True), lambda x, act=act: act(x[:, ::2]) * x[:, 1::2]  # type: ignore[misc]
    alpha, limit = getattr(module, "alpha", None), getattr(module, "limit", None)
    if isinstance(alpha, float) and isinstance(limit, int | float):
        for interleaved in (True, False):
            clamped = Gating("clamped_swiglu", interleaved=interleaved, alpha=alpha, limit=float(limit))
            yield clamped, lambda x, clamped=clamped: _clamped_swiglu(x, clamped)  # type: ignore[misc]


def _clamped_swiglu(x: Tensor, gating: Gating) -> Tensor:
    gate, up = (x[:, ::2], x[:, 1::2]) if gating.interleaved else x.chunk(2, dim=1)
    gate, up = gate.clamp(max=gating.limit), up.clamp(-gating.limit, gating.limit)
    return (up + 1) * gate * torch.sigmoid(gate * gating.alpha)
