"""Routers by the native kernel: logits, scores, the choice of experts and their weights in one call.

What a router's class computes is found by trying: of the ways that the kernel knows, the one that gives transformers'
own logits, choices and weights, in their order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from moe_local.kernels import native
from moe_local.kernels.native._native import Router, choose_experts
from moe_local.model.probing import noise, same, with_random_weights

_SOFTMAX, _SIGMOID, _SOFTMAX_OF_CHOSEN = 0, 1, 2  # as ops.hpp numbers them
_ROUTER = "_moe_local_router"  # on modules whose forward pass is ours
_BIASES = ("e_score_correction_bias",)
_SCALES = ("routed_scaling_factor", "router_scaling_factor", "route_scale")
_GROUPS, _KEPT = ("num_group", "n_group"), ("topk_group",)
_TOKENS = 48  # of a probe
_ALIKE = 0.9  # of its tokens must choose the same

Outputs = tuple[Tensor, Tensor, Tensor]  # logits [T, E], weights [T, k], index [T, k]


@dataclass(frozen=True, slots=True)
class _Kind:
    """How a class of routers computes, and what it makes of its numbers."""

    router: Router
    logits: torch.dtype
    weights: torch.dtype
    choices: int

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Outputs:
        """x [..., H] of bf16 or float32, weight [E, H], bias [E] float32."""
        x = x.contiguous()
        experts, columns = weight.shape
        tokens, types = x.numel() // columns, native.TYPES
        logits = torch.empty((tokens, experts), dtype=self.logits)
        weights = torch.empty((tokens, self.choices), dtype=self.weights)
        index = torch.empty((tokens, self.choices), dtype=torch.int64)
        choose_experts(
            native.machine(), self.router, tokens, columns, experts, x.data_ptr(), x.nbytes, types[x.dtype],
            weight.data_ptr(), weight.nbytes, types[weight.dtype],
            *((0, 0) if bias is None else (bias.data_ptr(), bias.nbytes)), logits.data_ptr(), logits.nbytes,
            types[self.logits], weights.data_ptr(), weights.nbytes, types[self.weights], index.data_ptr(), index.nbytes,
        )  # fmt: skip
        return logits, weights, index


def use_native_routers(model: nn.Module) -> None:
    """Has those routers of a model on a CPU whose choices ours equals be computed by ours, where rows are bf16."""
    kinds: dict[object, _Kind | None] = {}
    for module in list(model.modules()):
        if not _looks_like_one(module):
            continue
        key = _key(module)
        if key not in kinds:
            kinds[key] = _kind_of(module)
        if (kind := kinds[key]) is not None:
            vars(module)[_ROUTER] = kind
            module.__class__ = _faster(type(module))


def _looks_like_one(module: nn.Module) -> bool:
    """A matrix [experts, columns], perhaps a bias of the scores, and nothing else."""
    parameters = dict(module.named_parameters(recurse=False))
    weight = parameters.pop("weight", None)
    others = {*parameters, *(name for name, _ in module.named_buffers(recurse=False))} - set(_BIASES)
    right = weight is not None and weight.dim() == 2 and weight.is_contiguous() and weight.dtype in native.TYPES
    return right and not others and not list(module.children()) and _number(module, ("top_k",)) is not None


def _number(module: nn.Module, names: tuple[str, ...]) -> Any:
    found = (vars(module).get(name) for name in names)
    return next((value for value in found if isinstance(value, (int, float)) and not isinstance(value, bool)), None)


def _bias(module: nn.Module) -> Tensor | None:
    return next((found for name in _BIASES if isinstance(found := getattr(module, name, None), Tensor)), None)


def _key(module: nn.Module) -> object:
    settings = {name: value for name, value in vars(module).items() if isinstance(value, (bool, int, float, str))}
    weight: Any = module.weight
    return type(module), tuple(sorted(settings.items())), weight.shape, weight.dtype


def _kind_of(module: nn.Module) -> _Kind | None:
    """The kind whose choices are a module's; None if there is no such."""
    twin: Any = with_random_weights(module)
    bias = _bias(twin)
    x = noise(1, _TOKENS, twin.weight.shape[1])
    wanted = _outputs_of(twin, x)
    if wanted is None or (bias is not None and bias.dtype != torch.float32):
        return None
    kinds = list(_kinds(twin, wanted))
    return next((kind for kind in kinds if _alike(kind(x, twin.weight, bias), wanted)), None)


def _outputs_of(twin: Any, x: Tensor) -> Outputs | None:
    try:
        with torch.no_grad():
            wanted = twin(x[0])
    except Exception:  # it wants something else: no router of a kind that is known here
        return None
    if not (isinstance(wanted, tuple) and len(wanted) == 3 and all(isinstance(each, Tensor) for each in wanted)):
        return None
    logits, weights, index = wanted
    shapes = logits.shape == (_TOKENS, len(twin.weight)) and weights.shape == index.shape == (_TOKENS, index.shape[-1])
    types = logits.dtype in native.TYPES and weights.dtype in native.TYPES and index.dtype == torch.int64
    return (logits, weights, index) if shapes and types and index.shape[1] <= len(twin.weight) else None


def _alike(ours: Outputs, theirs: Outputs) -> bool:
    """Whether logits are the same, and the choices and weights of tokens whose logits have the same bits.

    In float32 hardly any have, and a tie is as rare: there all tokens but a few must choose the same.
    """
    if not same(ours[0], theirs[0]):
        return False
    chosen = (ours[2] == theirs[2]).all(dim=-1)
    if theirs[0].dtype == torch.bfloat16:
        chosen, comparable = (ours[0] == theirs[0]).all(dim=-1), chosen
        if not bool(comparable[chosen].all()):
            return False
    enough = chosen.float().mean().item() >= (_ALIKE if theirs[0].dtype == torch.float32 else 1 - _ALIKE)
    return enough and same(ours[1][chosen], theirs[1][chosen])


def _kinds(module: Any, wanted: Outputs) -> Iterator[_Kind]:
    choices, experts = wanted[2].shape[1], wanted[0].shape[1]
    groups, kept = _number(module, _GROUPS) or 1, _number(module, _KEPT) or 1
    scores = [0, 1, 2] if groups > 1 and experts % groups == 0 and kept <= groups else [0]
    scale = _number(module, _SCALES)
    for scoring, group_score, is_sorted, epsilon, by in product(
        (_SOFTMAX, _SIGMOID, _SOFTMAX_OF_CHOSEN),
        scores,
        (True, False),
        (None, 0.0, 1e-20),
        (1.0,) if scale is None else (float(scale), 1.0),
    ):
        if group_score == 1 and experts // groups < 2:
            continue
        router = Router(
            choices, scoring, group_score, groups, kept, is_sorted, epsilon is not None, epsilon or 0.0, by
        )
        yield _Kind(router, wanted[0].dtype, wanted[1].dtype, choices)


_faster_classes: dict[type[nn.Module], type[nn.Module]] = {}


def _faster(original: type[nn.Module]) -> type[nn.Module]:
    """A subclass whose modules route by their `_Kind`. Where gradients are wanted, as they always did."""

    def forward(self: Any, hidden_states: Tensor, *args: Any, **more: Any) -> Any:
        if hidden_states.dtype is torch.bfloat16 and not (hidden_states.requires_grad or args or more):
            if hidden_states.numel():
                return vars(self)[_ROUTER](hidden_states, self.weight, _bias(self))
        return original.forward(self, hidden_states, *args, **more)

    if original not in _faster_classes:
        members = {"forward": forward, "__module__": original.__module__}
        _faster_classes[original] = type(original.__name__, (original,), members)
    return _faster_classes[original]
