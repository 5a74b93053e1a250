"""What a user asks, as the token ids that a generation goes on from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from moe_local.errors import MoeLocalError
from moe_local.generation.encoder_decoder import assert_goes_on
from moe_local.generation.generate import TextGenerator
from moe_local.generation.tools.base import Tool

# Text, messages, or token ids.
Prompt = str | Sequence[Mapping[str, Any]] | Sequence[int]


def prompt_ids(
    generator: TextGenerator,
    prompt: Prompt,
    *,
    raw: bool,
    system: str | None,
    variables: Mapping[str, Any] | None = None,
    tools: Sequence[Tool] = (),
) -> list[int]:
    """Token ids of a prompt: text as a user's message in the model's chat template, or `raw` text to go on from.

    Messages are put into the template, which is told `variables` and of `tools`; token ids are taken as they are.
    """
    if not isinstance(prompt, str):
        if all(isinstance(token, int) for token in prompt):
            return [int(token) for token in prompt if isinstance(token, int)]
        assert_goes_on(generator.model, "a conversation")
        return render(generator, [message for message in prompt if isinstance(message, Mapping)], variables, tools)
    if not is_chat(generator, prompt, raw=raw):
        if system:
            raise MoeLocalError("a system message needs a chat template", remedy="put it into the prompt")
        return generator.encoder.encode(prompt)
    messages = [{"role": "system", "content": system}] if system else []
    return render(generator, [*messages, {"role": "user", "content": prompt}], variables)


def is_chat(generator: TextGenerator, prompt: Prompt, *, raw: bool) -> bool:
    """Whether a prompt goes through the chat template, so that an answer of the model's comes of it."""
    if generator.model.config.is_encoder_decoder:
        return False
    if isinstance(prompt, str):
        return not raw and bool(generator.template.source)
    return any(isinstance(part, Mapping) for part in prompt)


def render(
    generator: TextGenerator,
    messages: Sequence[Mapping[str, Any]],
    variables: Mapping[str, Any] | None = None,
    tools: Sequence[Tool] = (),
) -> list[int]:
    """Token ids of a conversation in the model's template, ready for its answer."""
    return generator.encoder.encode(generator.template.render(messages, variables, tools), special=False)
