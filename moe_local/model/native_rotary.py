"""Rotary embedding by the native kernel: queries and keys in a call each, in place of some thirty operations.

Modeling files define the function that does it, and call it by its name there. Ours takes that name for the whole
process, so it hands on to transformers' own whatever it was not found to equal bit for bit.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from moe_local.kernels import native
from moe_local.kernels.native._native import Rotary, rotate
from moe_local.memory.accelerator import on_cpu
from moe_local.model.probing import noise
from moe_local.model.transformers_api import functions_beside, replace_function

_HALVES, _NEIGHBOURS, _SHARED = 0, 1, 2  # as ops.hpp numbers them
_BF16 = native.TYPES[torch.bfloat16]
_STATES = (["q", "k"], ["x"])  # parameters before cos and sin

Rotate = Callable[..., Any]


def use_native_rotary(model: nn.Module) -> None:
    """Has the functions of this model's modeling files go by the native kernel, where they can."""
    for module, name, function in functions_beside(model):
        count = _states(function)
        if count and name.startswith("apply_rotary"):
            replace_function(module, name, _faster(function, count))


def _states(function: Rotate) -> int:
    """How many tensors a function turns; 0 for one that is no rotary embedding, or that is ours already."""
    if hasattr(function, "__moe_local__"):
        return 0
    names = list(inspect.signature(function).parameters)
    found = [states for states in _STATES if names[: len(states) + 2] == [*states, "cos", "sin"]]
    return len(found[0]) if found else 0


def _faster(original: Rotate, count: int) -> Rotate:
    forms: dict[tuple[int, int, torch.dtype, int], Rotary | None] = {}

    @wraps(original)
    def rotated(*given: Any, **more: Any) -> Any:
        axis = more.get("unsqueeze_dim", 1)
        if len(given) != count + 2 or len(more) > ("unsqueeze_dim" in more) or not _fit(given, axis):
            return original(*given, **more)
        cos, sin = given[count], given[count + 1]
        key = given[0].shape[-1], cos.shape[-1], cos.dtype, axis
        if key not in forms:
            forms[key] = _form_of(original, count, key)
        if (form := forms[key]) is None:
            return original(*given, **more)
        cos, sin = cos.contiguous(), sin.contiguous()
        if count == 1:
            return _rotated(form, given[0], cos, sin, axis)
        return _rotated(form, given[0], cos, sin, axis), _rotated(form, given[1], cos, sin, axis)

    vars(rotated)["__moe_local__"] = True
    return rotated


def _fit(given: tuple[Any, ...], axis: int) -> bool:
    """Whether these are states [B, ., ., D] of bf16 and angles [B or 1, tokens, .], on a CPU, without gradients."""
    *states, cos, sin = given
    for x in states:
        if type(x) is not Tensor or x.dtype is not torch.bfloat16 or x.dim() != 4 or x.requires_grad or not x.numel():
            return False
    first = states[0].shape
    if torch.compiler.is_compiling():
        return False
    if axis not in (1, 2) or type(cos) is not Tensor or type(sin) is not Tensor or not on_cpu(states[0].device):
        return False
    angles = cos.shape
    if cos.dtype not in native.TYPES or cos.dtype is not sin.dtype or len(angles) != 3 or angles != sin.shape:
        return False
    alike = all(x.shape[0] == first[0] and x.shape[3] == first[3] and x.shape[3 - axis] == angles[1] for x in states)
    return alike and angles[0] in (1, first[0])


def _rotated(form: Rotary, x: Tensor, cos: Tensor, sin: Tensor, axis: int) -> Tensor:
    """x [B, first, second, D] turned by cos and sin [B or 1, T, .]; T is second for axis 1, or else first."""
    x = x.contiguous()
    batch, first, second, columns = x.shape
    out = torch.empty_like(x)
    size, angles = x.nbytes, cos.shape
    rotate(
        native.machine(), form, batch, first, second, columns, axis == 2, x.data_ptr(), size, _BF16,
        angles[0] * angles[1], cos.data_ptr(), cos.nbytes, sin.data_ptr(), sin.nbytes, native.TYPES[cos.dtype],
        out.data_ptr(), size,
    )  # fmt: skip
    return out


def _form_of(original: Rotate, count: int, key: tuple[int, int, torch.dtype, int]) -> Rotary | None:
    """The form in which the native kernel gives a function's bits; None if there is no such."""
    columns, angles, dtype, axis = key
    x = noise(2, 3, 3, columns)
    cos, sin = noise(2, 2, 3, angles, dtype=dtype).unbind()
    try:
        wanted = original(*[x] * count, cos, sin, unsqueeze_dim=axis)
    except Exception:  # not a function of these shapes
        return None
    for form in _forms(columns, angles):
        got = _rotated(form, x, cos, sin, axis)
        if all(each.dtype == got.dtype and torch.equal(got, each) for each in (wanted if count > 1 else [wanted])):
            return form
    return None


def _forms(columns: int, angles: int) -> list[Rotary]:
    """Those that fit rows of `columns` numbers and as many angles."""
    made = []
    layouts = product((_HALVES, _NEIGHBOURS), (_HALVES, _NEIGHBOURS), (_HALVES, _NEIGHBOURS, _SHARED))
    for (inward, outward, by), rounds, last in product(layouts, (True, False), (False, True)):
        for size in {angles, 2 * angles} if by == _SHARED else {angles}:
            if size % 2 == 0 and size <= columns and not (last and size == columns):
                made.append(Rotary(inward, outward, by, rounds, last, size))
    return made
