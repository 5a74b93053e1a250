"""What a client asks for, whatever protocol it speaks, made into what the batch takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from moe_local.errors import MoeLocalError
from moe_local.generation.batch import Request
from moe_local.generation.batch.steering import Steering
from moe_local.generation.generate import TextGenerator
from moe_local.generation.grammar import Grammar, Grammars, after_reasoning, json_rule, mark
from moe_local.generation.prompt import Prompt, prompt_ids
from moe_local.generation.sampling import Sampling

_END = 64  # tokens of a prompt that tell whether reasoning is open
JSON_OBJECT: Mapping[str, Any] = {"type": "object"}


@dataclass(frozen=True)
class Asked:
    """A prompt and how it is to be answered. `schema` is what the answer has to be JSON of."""

    prompt: Prompt
    sampling: Sampling = field(default_factory=Sampling)
    steering: Steering = field(default_factory=Steering)
    raw: bool = False  # text to go on from, without the chat template
    variables: Mapping[str, Any] = field(default_factory=dict)  # that the chat template is told
    schema: Mapping[str, Any] | bool | None = None
    tools: Sequence[Mapping[str, Any]] = ()  # that the model may ask to be called, as chat templates take them
    forced: Sequence[str] = ()  # of these one has to be called
    many: bool = True  # whether several may be called in one answer


def prepare(generator: TextGenerator, asked: Asked, grammars: Callable[[], Grammars]) -> tuple[Request, list[int]]:
    """The request and its prompt's tokens. Raises MoeLocalError for what cannot be answered."""
    ids = tokens_of(generator, asked)
    steering = asked.steering
    if (constraint := _constraint(generator, asked, ids, grammars)) is not None:
        steering = replace(steering, constraint=constraint)
    request = Request(
        asked.prompt,
        asked.sampling,
        raw=asked.raw,
        template_variables=asked.variables,
        tools=asked.tools,
        steering=steering,
    )
    return request, ids


def tokens_of(generator: TextGenerator, asked: Asked) -> list[int]:
    """The prompt's tokens. Raises MoeLocalError for what the template or the context does not take."""
    return prompt_ids(
        generator, asked.prompt, raw=asked.raw, system=None, variables=asked.variables, tools=asked.tools
    )


def _constraint(
    generator: TextGenerator, asked: Asked, ids: Sequence[int], grammars: Callable[[], Grammars]
) -> Grammar | None:
    """What the answer has to be like; None: anything. Raises MoeLocalError where it cannot be held to that."""
    body = _body(generator, asked)
    if body is None:
        return None
    tokenizer, answers = generator.tokenizer, generator.template.answers
    return grammars().lark(after_reasoning(tokenizer, answers, tokenizer.decode(list(ids[-_END:])), body))


def _body(generator: TextGenerator, asked: Asked) -> str | None:
    """Rules of a grammar, of which `body` is the answer itself."""
    if asked.schema is not None:
        channels = generator.template.answers.has_channels
        begin = (mark(generator.tokenizer, text) for text in ("<|channel|>", "<|message|>"))
        final = '{} "final" {} '.format(*begin) if channels else ""
        return f"body: {final}json\njson: {json_rule(asked.schema)}"
    if not asked.forced:
        return None
    tools = [tool for tool in asked.tools if tool["function"]["name"] in asked.forced]
    rules = generator.template.calls.grammar(tools, many=asked.many)
    if rules is None:
        raise MoeLocalError(
            "calls of this model's format cannot be forced",
            remedy='leave tool_choice at "auto", and ask for the call',
        )
    return f"body: calls\n{rules}"
