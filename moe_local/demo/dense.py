"""A dense Llama model in memory, with its tokenizer: what the demo model is made from."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

MAX_POSITIONS = 8192

Report = Callable[[str, float], None]


@dataclass(frozen=True)
class DenseModel:
    """A dense Llama model in memory.

    `config` holds a Llama config's fields; `tensors` maps Llama checkpoint names to float tensors (a
    projection is `[out, in]`); `tokenizer` maps file names to their text; `origin` says where it all came
    from.
    """

    config: Mapping[str, Any]
    tensors: dict[str, torch.Tensor]
    tokenizer: Mapping[str, str]
    origin: str


def tokenizer_files(chat_template: str, **special: Any) -> dict[str, str]:
    """`tokenizer_config.json` and the chat template, for a `tokenizer.json` that is to be used as it
    stands.
    """
    settings = {
        # Named generically: an architecture's own class would rebuild the pre-tokenizer from its defaults.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": MAX_POSITIONS,
        "clean_up_tokenization_spaces": False,
        **{name: token["content"] if isinstance(token, dict) else token for name, token in special.items()},
    }
    return {"tokenizer_config.json": json.dumps(settings, indent=2), "chat_template.jinja": chat_template}


def write_tokenizer(files: Mapping[str, str], directory: Path) -> None:
    """Writes a `DenseModel.tokenizer` into a checkpoint directory."""
    for name, text in files.items():
        (directory / name).write_text(text, "utf-8", newline="\n")
