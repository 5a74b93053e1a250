"""What is to happen before every forward pass of a model, and whether anything is."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

_OURS = "_moe_local_hooks"  # on modules: how many of their hooks are ours
Hook = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]  # the module, its arguments, its named arguments


def register_forward_hook(model: PreTrainedModel, hook: Hook) -> None:
    """Calls `hook` before passes of the model and of the model without its head: twice where one calls the other."""
    for module in {model, model.base_model}:
        module.register_forward_pre_hook(hook, with_kwargs=True)
        vars(module)[_OURS] = vars(module).get(_OURS, 0) + 1


class HookWatch:
    """Whether hooks of others' are on modules: looked for again where any have been registered, or were there."""

    def __init__(self) -> None:
        self._free = -1  # hooks that had ever been registered when there were none

    def sees_none(self, modules: Iterable[nn.Module]) -> bool:
        """Whether nothing of others' is to happen before or after these modules' own forward passes."""
        if self._free == RemovableHandle.next_id:
            return True
        if any(map(_is_watched, modules)):
            return False  # and their removal does not show in the number
        self._free = RemovableHandle.next_id
        return True


def _is_watched(module: nn.Module) -> bool:
    return bool(module._forward_hooks) or len(module._forward_pre_hooks) > vars(module).get(_OURS, 0)
