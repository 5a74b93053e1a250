"""Whether a native function computes what one of transformers' does: told by numbers, not by names.

transformers' own is run on random inputs, and ours takes its place only where the same comes out.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

_SEED = 20240611
_STRAY = 0.02  # of the numbers may be the next one: sums in another order fall to the other side of a tie


def noise(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Random normal numbers, the same ones each time."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(_SEED)).to(dtype)


def with_random_weights(module: nn.Module) -> nn.Module:
    """A copy whose parameters and buffers of floating point are random: what is all ones would hide much."""
    copy = deepcopy(module)
    generator = torch.Generator().manual_seed(_SEED + 1)
    for tensor in (*copy.parameters(), *copy.buffers()):
        if tensor.is_floating_point():
            scale = 1.0 if tensor.dim() == 1 else tensor.shape[-1] ** -0.5
            tensor.data = (torch.randn(tensor.shape, generator=generator) * scale).to(tensor.dtype)
    return copy


def same(ours: Tensor, theirs: Tensor) -> bool:
    """Whether two results are of one type and the same: in bf16 but for a few neighbours, in float32 nearly."""
    if ours.dtype != theirs.dtype or ours.shape != theirs.shape or not bool(theirs.isfinite().all()):
        return False
    if theirs.dtype != torch.bfloat16 and not torch.equal(theirs, theirs.bfloat16().float()):
        return torch.allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    strays = ours != theirs
    near = torch.allclose(ours.float(), theirs.float(), rtol=2**-7, atol=1e-6)
    return near and strays.float().mean().item() <= _STRAY


def settings_of(module: nn.Module) -> object:
    """What a module's way to compute depends on: its class, and all that was chosen for it."""
    chosen = {name: value for name, value in vars(module).items() if isinstance(value, (bool, int, float, str))}
    weight = getattr(module, "weight", None)
    return type(module), tuple(sorted(chosen.items())), None if weight is None else (weight.shape, weight.dtype)


_subclasses: dict[object, type[nn.Module]] = {}


def subclass(
    original: type[nn.Module], forward_for: Callable[[type[nn.Module]], Callable[..., Any]]
) -> type[nn.Module]:
    """The class of the same name whose forward pass `forward_for` makes of the original; the same one each time."""
    key = original, forward_for
    if key not in _subclasses:
        members = {"forward": forward_for(original), "__module__": original.__module__}
        _subclasses[key] = type(original.__name__, (original,), members)
    return _subclasses[key]
