"""What transformers renames from release to release, said once for every release that pyproject allows."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from transformers.modeling_outputs import CausalLMOutputWithPast

# How forward passes, `generate` and their outputs call the KV cache: 5.24 renamed it.
CACHE = "cache" if "cache" in {field.name for field in fields(CausalLMOutputWithPast)} else "past_key_values"


def kv_cache(output: Any) -> Any:
    """The KV cache in what a forward pass or `generate` gave; None where it has none."""
    return getattr(output, CACHE, None)
