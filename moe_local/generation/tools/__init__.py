"""How models call tools: what each family writes, read back as calls, and the grammar of what it may write."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerBase

from moe_local.generation.tools.base import CallPiece, ToolCall, ToolFormat
from moe_local.registry import Registry

# The first whose marks are in a model's chat template is its own; those with rarer marks come first.
TOOL_FORMATS: Registry[type[ToolFormat]] = Registry(
    "format of tool calls",
    __name__,
    {
        "harmony": "harmony.Harmony",
        "minimax": "minimax.MiniMax",
        "kimi": "kimi.Kimi",
        "deepseek": "deepseek.DeepSeek",
        "glm": "glm.Glm",
        "qwen3_coder": "qwen3_coder.Qwen3Coder",
        "mistral": "mistral.Mistral",
        "granite": "granite.Granite",
        "llama": "llama.Llama",
        "hermes": "hermes.Hermes",
    },
)
PLAIN = "hermes"  # of models whose template knows no tools: they are told of it


def tool_format(tokenizer: PreTrainedTokenizerBase, chat_template: str) -> ToolFormat:
    """That of a model, as its chat template's source tells."""
    vocabulary: Any = tokenizer.get_vocab()
    for kind in TOOL_FORMATS.values():
        made = kind(tokenizer)
        if made.is_of(chat_template, vocabulary):
            return made
    return TOOL_FORMATS[PLAIN](tokenizer)


__all__ = ["TOOL_FORMATS", "CallPiece", "ToolCall", "ToolFormat", "tool_format"]
