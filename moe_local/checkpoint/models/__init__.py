"""Models that transformers does not have: a file each, and a line in `MODELS`.

Their checkpoints bring model code of their own, which is never run: what is loaded are these classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from moe_local.registry import Registry

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# By config.json's model_type.
MODELS: Registry[type[PreTrainedModel]] = Registry(
    "model",
    __name__,
    {
        "deepseek": "deepseek.DeepseekForCausalLM",
        "grok-1": "grok.Grok1ForCausalLM",
    },
)
