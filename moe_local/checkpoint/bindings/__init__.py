"""Architectures that transformers keeps outside its experts interface. A new one is a file and a line in `BINDINGS`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moe_local.registry import Registry

if TYPE_CHECKING:
    from moe_local.checkpoint.bindings.base import Binding

# By the folder under `transformers.models`.
BINDINGS: Registry[Binding] = Registry(
    "binding",
    __name__,
    {
        "dbrx": "dbrx.DBRX",
        "jetmoe": "jetmoe.JETMOE",
        "llama4": "llama4.LLAMA4",
        "longcat_flash": "longcat_flash.LONGCAT_FLASH",
        "nllb_moe": "nllb_moe.NLLB_MOE",
        "switch_transformers": "switch_transformers.SWITCH_TRANSFORMERS",
    },
)


def binding_of(cls: type) -> Binding | None:
    """The binding of a model's class, or its configuration's; None for what the experts interface covers."""
    folder = cls.__module__.removeprefix("transformers.models.").partition(".")[0]
    return BINDINGS[folder] if folder in BINDINGS else None
