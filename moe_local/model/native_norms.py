"""RMS norms by the native kernel, in place of seven operations of torch's each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from moe_local.kernels import native
from moe_local.kernels.native._native import rms_norm
from moe_local.model.probing import noise, same, settings_of, subclass, with_random_weights

_EPSILON = ("variance_epsilon", "eps", "epsilon")
_ROUNDINGS = (1, 0, 2)  # before the weight, at the end, of the factor: see ops.hpp
_BF16 = native.TYPES[torch.bfloat16]
_NORM = "_moe_local_norm"  # on modules whose forward pass is ours

# What a weight is multiplied by, in float32.
_FACTORS: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda weight: weight.float(),
    lambda weight: 1 + weight.float(),
    lambda weight: (1 + weight).float(),
)


@dataclass(frozen=True, slots=True)
class _Kind:
    """How a class of norms computes."""

    rounding: int
    factor: Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class _Norm:
    """One norm, for rows of bf16."""

    rounding: int
    epsilon: float
    factors: Tensor | None  # [columns] float32

    def __call__(self, x: Tensor) -> Tensor:
        """x [..., columns] -> the same shape."""
        x = x.contiguous()
        out = torch.empty_like(x)
        size, columns, factors = x.nbytes, x.shape[-1], self.factors
        address, length = (0, 0) if factors is None else (factors.data_ptr(), factors.nbytes)
        rms_norm(
            native.machine(), self.rounding, self.epsilon, size // (2 * columns), columns, _BF16, x.data_ptr(), size,
            address, length, out.data_ptr(), size,
        )  # fmt: skip
        return out


def use_native_norms(model: nn.Module) -> None:
    """Has those norms of a model on a CPU whose numbers ours equals be computed by ours, where rows are bf16."""
    kinds: dict[object, _Kind | None] = {}
    for module in list(model.modules()):
        epsilon = _epsilon(module)
        if epsilon is None:
            continue
        key = settings_of(module)
        if key not in kinds:
            kinds[key] = _kind_of(module, epsilon)
        if (kind := kinds[key]) is not None:
            vars(module)[_NORM] = _norm(kind, module, epsilon)
            module.__class__ = subclass(type(module), _forward_for)


def _epsilon(module: nn.Module) -> float | None:
    """What a norm adds to the mean of squares; None for a module that is no norm by its looks."""
    parameters = dict(module.named_parameters(recurse=False))
    weights = [name for name, weight in parameters.items() if weight.dim() != 1 or name != "weight"]
    if weights or len(list(module.children())) or any(True for _ in module.buffers(recurse=False)):
        return None
    found = [vars(module)[name] for name in _EPSILON if isinstance(vars(module).get(name), float)]
    return found[0] if found and found[0] > 0 else None


def _kind_of(module: nn.Module, epsilon: float) -> _Kind | None:
    """The kind whose numbers are a module's; None if there is no such."""
    twin = with_random_weights(module)
    weight: Any = getattr(twin, "weight", None)
    x = noise(64, 96 if weight is None else len(weight))
    try:
        with torch.no_grad():
            wanted = twin(x)
    except Exception:  # it wants something else: no norm
        return None
    if not isinstance(wanted, Tensor):
        return None
    return next((kind for kind in _kinds() if same(_norm(kind, twin, epsilon)(x), wanted)), None)


def _kinds() -> Iterator[_Kind]:
    for rounding in _ROUNDINGS:
        for factor in _FACTORS:
            yield _Kind(rounding, factor)


def _norm(kind: _Kind, module: nn.Module, epsilon: float) -> _Norm:
    weight: Any = getattr(module, "weight", None)
    factors = None if weight is None else kind.factor(weight.detach()).contiguous()
    return _Norm(kind.rounding, epsilon, factors)


def _forward_for(original: type[nn.Module]) -> Callable[..., Any]:
    """A forward pass that computes by the `_Norm` of a module. Where gradients are wanted, as it always did."""

    def forward(self: nn.Module, x: Tensor, *args: Any, **more: Any) -> Tensor:
        if x.dtype is torch.bfloat16 and not x.requires_grad and not args and not more and x.numel():
            computed: Tensor = vars(self)[_NORM](x)
            return computed
        left: Tensor = original.forward(self, x, *args, **more)
        return left

    return forward
