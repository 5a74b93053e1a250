"""Architectures that transformers keeps outside its experts interface: a file each, and a line in `BINDINGS`."""

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

# Those that are not run, where transformers' experts interface does not cover them, and why.
REFUSED = {
    "aria": "runs with transformers 5.18 or later",
    "doge": "has no experts to page: they are rows of two tables, a few numbers each",
    "vitpose_backbone": "makes no text: it finds people in pictures",
}


def binding_of(cls: type) -> Binding | None:
    """The binding of a model's class, or its configuration's; None for what the experts interface covers."""
    return BINDINGS.get(folder_of(cls))


def folder_of(cls: type) -> str:
    """The folder under `transformers.models` that a class is defined in."""
    return cls.__module__.removeprefix("transformers.models.").partition(".")[0]
