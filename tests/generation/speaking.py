"""A model made to say what a test wants."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from moe_local.engine import Engine
from moe_local.testing import tiny_tokenizer


def tokenizer_with(
    *special: str, plain: tuple[str, ...] = (), template: str | None = None
) -> PreTrainedTokenizerFast:
    """The tiny tokenizer with more tokens, and a chat template."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([AddedToken(text, special=True) for text in special])
    tokenizer.add_tokens([AddedToken(text, special=False) for text in plain])
    if template is not None:
        tokenizer.chat_template = template
    return tokenizer


def write_tokenizer(tokenizer: PreTrainedTokenizerFast, checkpoint: Path) -> None:
    for name in ("chat_template.jinja", "tokenizer.json", "tokenizer_config.json"):
        (checkpoint / name).unlink(missing_ok=True)
    tokenizer.save_pretrained(checkpoint)


def made_to_say(engine: Engine, ids: list[int], end: int) -> None:
    """From here on the model says these tokens, then `end` for ever."""
    left = list(ids)

    def say(module: Any, args: Any, out: Any) -> Any:
        out.logits[:] = -1e4
        out.logits[..., -1, left.pop(0) if left else end] = 1e4
        return out

    engine.model.register_forward_hook(say)
