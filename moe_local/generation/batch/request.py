"""What is asked of a batch, and what comes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from moe_local.generation.batch.steering import Steering
from moe_local.generation.prompt import Prompt
from moe_local.generation.sampling import Sampling
from moe_local.generation.tools.base import Tool, ToolCall


@dataclass(frozen=True)
class Request:
    """A prompt: text (put into the model's chat template, unless `raw`), messages, or token ids."""

    prompt: Prompt
    sampling: Sampling = field(default_factory=Sampling)
    system: str | None = None
    raw: bool = False
    template_variables: Mapping[str, Any] | None = None  # that the chat template is told
    tools: Sequence[Tool] = ()  # that the model may ask to be called
    steering: Steering = field(default_factory=Steering)
    tag: Any = None  # the caller's own, handed back with the answer


@dataclass(frozen=True)
class Answer:
    """What came of a request; with an `error` it could not be answered, and the rest is empty."""

    request: Request
    text: str = ""
    token_ids: Sequence[int] = ()
    prompt_tokens: int = 0
    finish_reason: str = "error"  # "stop", "length" or "error"
    error: str | None = None
    reasoning: str = ""  # what was said on the way to the text, where the model marks it off
    tool_calls: Sequence[ToolCall] = ()
    stop_string: str | None = None  # of those that were asked for, the one that ended it

    @property
    def new_tokens(self) -> int:
        """Tokens of the answer, its end token among them."""
        return len(self.token_ids)
