"""What a user may say about chat templates. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from moe_local.errors import MoeLocalError
from moe_local.registry import choice

EFFORTS = ("low", "medium", "high")
THINKING = ("on", "off", *EFFORTS)
# What templates call the switch.
_SWITCHES = ("enable_thinking", "thinking")
_EFFORT = "reasoning_effort"


def thinking(level: str | None) -> dict[str, Any]:
    """The variables of a template that say so much thinking: on, off, low, medium or high. Raises MoeLocalError."""
    if level is None:
        return {}
    if level not in THINKING:
        raise MoeLocalError(f"--think {level} is unknown", remedy=choice(level, THINKING))
    switches: dict[str, Any] = dict.fromkeys(_SWITCHES, level != "off")
    return switches | ({_EFFORT: level} if level in EFFORTS else {})


@dataclass(frozen=True)
class TemplateSettings:
    """What a user may say about chat templates."""

    source: str | None = None  # in place of the model's
    variables: Mapping[str, Any] = field(default_factory=dict)  # that it is told
    level: str | None = None  # of thinking: on, off, low, medium or high

    def __post_init__(self) -> None:
        thinking(self.level)
