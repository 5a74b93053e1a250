"""Routers by the native kernel: logits, scores, the choice of experts and their weights in one call.

What a router's class computes is found by trying: of the ways that the kernel knows, the one that gives transformers'
own logits, choices and weights, in their order.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from moe_local.kernels import native
from moe_local.kernels.native._native import Router, choose_experts
from moe_local.model.probing import noise, same, settings_of, subclass, with_random_weights

_SOFTMAX, _SIGMOID, _SOFTMAX_OF_CHOSEN = 0, 1, 2  # as ops.hpp numbers them
_ROUTER = "_moe_local_router"  # on modules whose forward pass is ours
_BIAS = "e_score_correction_bias"  # of the choice: the module's own, or an argument
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

    def __call__(self, x: Tensor, module: Any, bias: Tensor | None) -> Outputs:
        """x [..., H] of bf16, bias [E] of the choice."""
        weight, x = module.weight, x.contiguous()
        experts, columns = weight.shape
        tokens, types = x.numel() // columns, native.TYPES
        logits = torch.empty((tokens, experts), dtype=self.logits)
        weights = torch.empty((tokens, self.choices), dtype=self.weights)
        index = torch.empty((tokens, self.choices), dtype=torch.int64)
        shift, bias = _floats(vars(module)["_parameters"].get("bias")), _floats(bias)
        choose_experts(
            native.machine(), self.router, tokens, columns, experts, x.data_ptr(), x.nbytes, types[x.dtype],
            weight.data_ptr(), weight.nbytes, types[weight.dtype], *_where(shift), *_where(bias),
            logits.data_ptr(), logits.nbytes, types[self.logits],
            weights.data_ptr(), weights.nbytes, types[self.weights], index.data_ptr(), index.nbytes,
        )  # fmt: skip
        return logits, weights, index


def _floats(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.float()


def _where(bias: Tensor | None) -> tuple[int, int]:
    """Address and bytes of a bias."""
    return (0, 0) if bias is None else (bias.data_ptr(), bias.nbytes)


def use_native_routers(model: nn.Module) -> None:
    """Has those routers of a model on a CPU whose choices ours equals be computed by ours, where rows are bf16."""
    kinds: dict[object, _Kind | None] = {}
    for module in list(model.modules()):
        if not _looks_like_one(module):
            continue
        key = settings_of(module)
        if key not in kinds:
            kinds[key] = _kind_of(module)
        if (kind := kinds[key]) is not None:
            vars(module)[_ROUTER] = kind
            module.__class__ = subclass(type(module), _forward_for)


def _looks_like_one(module: nn.Module) -> bool:
    """A matrix [experts, columns], perhaps a bias of the scores, and nothing else."""
    parameters = dict(module.named_parameters(recurse=False))
    weight, shift = parameters.pop("weight", None), parameters.pop("bias", None)
    others = {*parameters, *(name for name, _ in module.named_buffers(recurse=False))} - {_BIAS}
    right = weight is not None and (shift is None or shift.dim() == 1)
    right = (
        right and weight is not None and weight.dim() == 2 and weight.is_contiguous() and weight.dtype in native.TYPES
    )
    return right and not others and not list(module.children()) and _number(module, ("top_k",)) is not None


def _number(module: nn.Module, names: tuple[str, ...]) -> Any:
    found = (vars(module).get(name) for name in names)
    return next((value for value in found if isinstance(value, (int, float)) and not isinstance(value, bool)), None)


def _own_bias(module: Any) -> Tensor | None:
    """The bias of the choice that a module holds, without nn.Module's search for it."""
    held = vars(module)
    found: Tensor | None = held["_buffers"].get(_BIAS)
    return held["_parameters"].get(_BIAS) if found is None else found


def _kind_of(module: nn.Module) -> _Kind | None:
    """The kind whose choices are a module's; None if there is no such."""
    twin: Any = with_random_weights(module)
    bias, x = _own_bias(twin), noise(_TOKENS, twin.weight.shape[1])
    given = {}
    if bias is None and _BIAS in inspect.signature(twin.forward).parameters:
        bias = given[_BIAS] = noise(len(twin.weight), dtype=torch.float32)
    wanted = _outputs_of(twin, x, given)
    if wanted is None:
        return None
    with torch.no_grad():
        return next((kind for kind in _kinds(twin, wanted) if _alike(kind(x, twin, bias), wanted)), None)


def _outputs_of(twin: Any, x: Tensor, given: dict[str, Tensor]) -> Outputs | None:
    try:
        with torch.no_grad():
            wanted = twin(x, **given)
    except Exception:  # it wants something else: no router of a kind that is known here
        return None
    if not (isinstance(wanted, tuple) and len(wanted) == 3 and all(isinstance(each, Tensor) for each in wanted)):
        return None
    logits, weights, index = wanted
    shapes = logits.shape == (_TOKENS, len(twin.weight)) and weights.shape == index.shape == (
        _TOKENS,
        index.shape[-1],
    )
    types = logits.dtype in native.TYPES and weights.dtype in native.TYPES and index.dtype == torch.int64
    return (logits, weights, index) if shapes and types and index.shape[1] <= len(twin.weight) else None


def _alike(ours: Outputs, theirs: Outputs) -> bool:
    """Whether logits are the same, and the choices and weights of tokens whose logits have the same bits.

    In float32 hardly any have, and a tie is as rare: there all tokens but a few must choose the same.
    """
    if not same(ours[0], theirs[0]):
        return False
    chosen = (ours[2] == theirs[2]).all(dim=-1)
    rounded = theirs[0].dtype == torch.bfloat16 or torch.equal(theirs[0], theirs[0].bfloat16().float())
    if rounded:
        chosen, comparable = (ours[0] == theirs[0]).all(dim=-1), chosen
        if not bool(comparable[chosen].all()):
            return False
    enough = chosen.float().mean().item() >= (1 - _ALIKE if rounded else _ALIKE)
    return enough and same(ours[1][chosen], theirs[1][chosen])


def _kinds(module: Any, wanted: Outputs) -> Iterator[_Kind]:
    choices, experts = wanted[2].shape[1], wanted[0].shape[1]
    groups, kept = _number(module, _GROUPS) or 1, _number(module, _KEPT) or 1
    scores = [0, 1, 2] if groups > 1 and experts % groups == 0 and kept <= groups else [0]
    scale = _number(module, _SCALES)
    rounds = module.weight.dtype == torch.bfloat16
    for scoring, group_score, is_sorted, epsilon, by, rounded in product(
        (_SOFTMAX, _SIGMOID, _SOFTMAX_OF_CHOSEN),
        scores,
        (True, False),
        (None, 0.0, 1e-20),
        (1.0,) if scale is None else (float(scale), 1.0),
        (True, False) if rounds else (False,),
    ):
        if group_score == 1 and experts // groups < 2:
            continue
        router = Router(
            choices, scoring, group_score, groups, kept, is_sorted, epsilon is not None, epsilon or 0.0, by, rounded
        )
        yield _Kind(router, wanted[0].dtype, wanted[1].dtype, choices)


def _forward_for(original: type[nn.Module]) -> Callable[..., Any]:
    """A forward pass that routes by the `_Kind` of a module. Where gradients are wanted, as it always did."""

    def forward(self: Any, hidden_states: Tensor, *args: Any, **more: Any) -> Any:
        given = args[0] if len(args) == 1 else more.get(_BIAS)
        known = len(args) + len(more) == (given is not None)
        if (
            known
            and hidden_states.dtype is torch.bfloat16
            and hidden_states.numel()
            and not hidden_states.requires_grad
        ):
            return vars(self)[_ROUTER](hidden_states, self, _own_bias(self) if given is None else given)
        return original.forward(self, hidden_states, *args, **more)

    return forward
