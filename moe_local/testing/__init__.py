"""What tests of MoE offloading need: tiny checkpoints of every MoE architecture of transformers, bad disks.

Importing this costs nothing: torch and transformers are imported when something is first built.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from moe_local.testing.architectures import Architecture, architecture, architectures, whole_architectures
from moe_local.testing.tokenizer import tiny_tokenizer

if TYPE_CHECKING:
    from moe_local.testing.disks import FailingDisk, SlowDisk
    from moe_local.testing.eager import eager_model
    from moe_local.testing.interrupts import interrupted_after
    from moe_local.testing.late_mover import LateMover
    from moe_local.testing.shrunk_config import tiny_config
    from moe_local.testing.tiny import tiny_inputs, tiny_model, write_tiny_checkpoint

__all__ = [
    "Architecture",
    "FailingDisk",
    "LateMover",
    "SlowDisk",
    "architecture",
    "architectures",
    "eager_model",
    "interrupted_after",
    "tiny_config",
    "tiny_inputs",
    "tiny_model",
    "tiny_tokenizer",
    "whole_architectures",
    "write_tiny_checkpoint",
]

_HOMES = {
    "FailingDisk": "disks",
    "LateMover": "late_mover",
    "SlowDisk": "disks",
    "eager_model": "eager",
    "interrupted_after": "interrupts",
    **dict.fromkeys(("tiny_inputs", "tiny_model", "write_tiny_checkpoint"), "tiny"),
    "tiny_config": "shrunk_config",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
