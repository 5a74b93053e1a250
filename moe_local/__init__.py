"""moe-local: Mixture-of-Experts language models that do not fit in memory, on the machine you already own."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from moe_local.threads import wait_asleep
from moe_local.version import __version__

if TYPE_CHECKING:
    from moe_local.engine import Engine, load
    from moe_local.generation.batch import Answer, Request
    from moe_local.generation.sampling import Sampling
    from moe_local.planning.options import Options
    from moe_local.planning.plan_load import plan_load

wait_asleep()

__all__ = ["Answer", "Engine", "Options", "Request", "Sampling", "__version__", "load", "plan_load"]

_HOMES = {
    "Answer": "moe_local.generation.batch",
    "Request": "moe_local.generation.batch",
    "Engine": "moe_local.engine",
    "Options": "moe_local.planning.options",
    "load": "moe_local.engine",
    "plan_load": "moe_local.planning.plan_load",
    "Sampling": "moe_local.generation.sampling",
}


def __getattr__(name: str) -> Any:
    """Imports torch and transformers only when something that needs them is asked for."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
