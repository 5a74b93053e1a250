"""A single query's attention by the native kernel in models that transformers computes eagerly: those with sinks.

Modeling files define the function, and ours takes its name there. It computes for modules of ours alone, and only
where it was found to give what transformers' own gives in float32.
"""

from __future__ import annotations

from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from moe_local.memory.accelerator import on_cpu
from moe_local.model.attention_native import attend_native, takes
from moe_local.model.probing import noise
from moe_local.model.transformers_api import functions_beside, replace_function

_NAME = "eager_attention_forward"
_FOUND = "_moe_local_eager"  # on modules of ours: what was found of them, by the names of the arguments
_HARMLESS = frozenset({"scaling", "dropout", "sliding_window", "s_aux", "position_ids", "use_cache"})
_SHARP = 4  # queries of a probe are as much larger: scores reach where a cap would show


def use_native_eager(model: nn.Module) -> None:
    """Has attention that this model's modeling files compute eagerly go by the native kernel, token by token."""
    for module in model.modules():
        vars(module)[_FOUND] = {}
    for file, name, function in functions_beside(model):
        if name == _NAME and not hasattr(function, "__moe_local__"):
            replace_function(file, name, _faster(function))


def _faster(original: Any) -> Any:
    @wraps(original)
    def attended(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **more: Any
    ) -> Any:
        given = (query, key, value, attention_mask)
        if _FOUND in vars(module) and _plain(module, more) and on_cpu(query.device) and takes(*given):
            found = vars(module)[_FOUND]
            names = (attention_mask is None, *sorted(name for name, each in more.items() if each is not None))
            if names not in found and key.shape[2] > 1:
                found[names] = _sinks_of(original, module, given, more)
            if (sinks := found.get(names)) is not None:
                return attend_native(*given, more["scaling"], sinks if sinks.numel() else None), None
        return original(module, query, key, value, attention_mask, **more)

    vars(attended)["__moe_local__"] = True
    return attended


def _plain(module: nn.Module, more: dict[str, Any]) -> bool:
    """Whether nothing is asked for but a scale, and the module's own sinks."""
    if not isinstance(more.get("scaling"), float) or more.get("dropout") or module.training:
        return False
    own = more.get("s_aux") is None or more["s_aux"] is getattr(module, "sinks", None)
    return own and all(name in _HARMLESS for name, each in more.items() if each is not None and each is not False)


def _sinks_of(original: Any, module: nn.Module, given: tuple[Any, ...], more: dict[str, Any]) -> Tensor | None:
    """The sinks [heads] with which the kernel gives what a module computes, empty for none; None if it does not."""
    shapes = [tuple(states.shape) for states in given[:3]]
    query, key, value = noise(*shapes[0]) * _SHARP, noise(*shapes[1]).flip(2), noise(*shapes[2])
    own = getattr(module, "sinks", None)
    sinks = own.detach().float().contiguous() if isinstance(own, Tensor) else torch.empty(0)
    if sinks.numel() not in (0, query.shape[1]):
        return None
    try:
        wanted, _ = original(module, query.float(), key.float(), value.float(), given[3], **more)
    except (RuntimeError, TypeError):  # it wants something else
        return None
    got = attend_native(query, key, value, given[3], more["scaling"], sinks if sinks.numel() else None)
    return sinks if torch.allclose(got.float(), wanted.float(), rtol=0.02, atol=0.01) else None
