"""Every place where we reach into transformers beyond calling its models: each contact has a name here.

Some of these are private to transformers, and move from release to release. Each has a test that it takes effect, run
with the oldest and the newest release that pyproject allows.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from types import FunctionType
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import logging as transformers_logging

# How forward passes, `generate` and their outputs call the KV cache: 5.24 renamed it.
CACHE = "cache" if "cache" in {field.name for field in fields(CausalLMOutputWithPast)} else "past_key_values"

torch_attention = sdpa_attention_forward  # attention by torch's kernel, in transformers' interface

_patching = threading.Lock()  # the functions belong to the whole process


def kv_cache(output: Any) -> Any:
    """The KV cache in what a forward pass or `generate` gave; None where it has none."""
    return getattr(output, CACHE, None)


def use_attention(attend: Callable[..., Any]) -> None:
    """Has models call `attend` where they would call torch's kernel: all of this process's.

    It takes that name, as some models look at the name to choose how they make their masks.
    """
    ALL_ATTENTION_FUNCTIONS["sdpa"] = attend


def attends_eagerly(config: PreTrainedConfig) -> bool:
    """Whether the model computes all attention scores at once."""
    return bool(config._attn_implementation == "eager")


def wide_parameters(model: PreTrainedModel, dtype: torch.dtype) -> list[str]:
    """Patterns of the parameters that stay float32 when the model is loaded in `dtype`."""
    return list(model._get_dtype_plan(dtype))


def logits_processors(
    model: Any, sampling: Mapping[str, Any], prompt_tokens: int
) -> tuple[GenerationConfig, LogitsProcessorList]:
    """What `generate` would be configured with and do to scores, for a prompt of so many tokens."""
    config, _ = model._prepare_generation_config(None, **sampling)
    model._prepare_special_tokens(config, device=model.device)
    return config, model._get_logits_processor(config, input_ids_seq_length=prompt_tokens, device=model.device)


def mark_loaded(module: nn.Module) -> None:
    """Keeps transformers from initialising a module that it has no weights for."""
    vars(module)["_is_hf_initialized"] = True


def keep_tied(model: Any, *, without: set[str]) -> None:
    """Unties the parameters named in `without`: they are no parameters any more."""
    model.all_tied_weights_keys = {a: b for a, b in model.all_tied_weights_keys.items() if not without & {a, b}}


def functions_beside(model: nn.Module) -> list[tuple[str, str, Callable[..., Any]]]:
    """The functions that the modeling files of a model's modules define: file's module, name, function."""
    files = {cls.__module__ for each in model.modules() for cls in type(each).__mro__ if cls is not nn.Module}
    found: list[tuple[str, str, Callable[..., Any]]] = []
    for name in sorted(file for file in files if file.startswith("transformers.models.")):
        for key, value in list(vars(sys.modules[name]).items()):
            if isinstance(value, FunctionType) and value.__module__ == name:
                found.append((name, key, value))
    return found


def replace_function(module: str, name: str, function: Callable[..., Any]) -> None:
    """Has a modeling file's classes call another function by this name: those of the whole process."""
    with _patching:
        setattr(sys.modules[module], name, function)


@contextmanager
def quiet() -> Iterator[None]:
    """While inside, transformers says nothing: not that every expert tensor is unexpected, and no bar of its own."""
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
