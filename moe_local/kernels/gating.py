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
    for gating in _candidates(module):
        expected = activation_of(gating)(probe)
        if expected.shape == found.shape and torch.allclose(expected, found.float(), rtol=1e-4, atol=5e-5):
            return gating
    return None


def activation_of(gating: Gating) -> Activate:
    """What the kernels compute for a gating, by torch's operations."""
    if gating.activation == "clamped_swiglu":
        return lambda x: _clamped_swiglu(x, gating)
    act = _ACTIVATIONS[gating.activation]
    return act if not gating.gated else lambda x: _gated(act, *_gate_and_up(x, gating))


def _gate_and_up(x: Tensor, gating: Gating) -> tuple[Tensor, Tensor]:
    if gating.interleaved:
        return x[:, ::2], x[:, 1::2]
    gate, up = x.chunk(2, dim=1)
    return gate, up


def _gated(act: Activate, gate: Tensor, up: Tensor) -> Tensor:
    return act(gate) * up


def _candidates(module: Any) -> Iterator[Gating]:
    for name in _ACTIVATIONS:
        yield from (Gating(name, gated=False), Gating(name), Gating(name, interleaved=True))
    alpha, limit = getattr(module, "alpha", None), getattr(module, "limit", None)
    if isinstance(alpha, float) and isinstance(limit, int | float):
        for interleaved in (True, False):
            yield Gating("clamped_swiglu", interleaved=interleaved, alpha=alpha, limit=float(limit))


def _clamped_swiglu(x: Tensor, gating: Gating) -> Tensor:
    gate, up = _gate_and_up(x, gating)
    gate, up = gate.clamp(max=gating.limit), up.clamp(-gating.limit, gating.limit)
    return (up + 1) * gate * torch.sigmoid(gate * gating.alpha)
