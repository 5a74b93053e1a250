"""Anthropic's messages: https://docs.anthropic.com/en/api/messages"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from moe_local.generation.template_settings import thinking
from moe_local.serve.asking import Asked
from moe_local.serve.errors import RefusedError
from moe_local.serve.fields import MOST_STOPS, Json, Strict, Tokens, sampling, template_variables
from moe_local.serve.service import Service
from moe_local.serve.tool_fields import Forced, Function, Name, described, offered

_BETWEEN = "\n\n"


class CacheControl(Strict):
    """What was computed is kept without it, as long as there is room."""

    type: Literal["ephemeral"]
    ttl: str | None = None
    scope: str | None = None


class TextBlock(Strict):
    type: Literal["text"]
    text: str
    cache_control: CacheControl | None = None
    citations: list[Any] | None = Field(None, max_length=0)


class ThinkingBlock(Strict):
    """What the model reasoned in an earlier turn."""

    type: Literal["thinking"]
    thinking: str
    signature: str | None = None


class ToolUseBlock(Strict):
    type: Literal["tool_use"]
    id: str
    name: str
    input: Json
    cache_control: CacheControl | None = None


class ToolResultBlock(Strict):
    type: Literal["tool_result"]
    tool_use_id: str
    content: str | list[TextBlock] | None = None
    is_error: bool | None = None
    cache_control: CacheControl | None = None


BlockOfMessage = Annotated[TextBlock | ThinkingBlock | ToolUseBlock | ToolResultBlock, Field(discriminator="type")]


class Message(Strict):
    role: Literal["user", "assistant", "system"]
    content: str | list[BlockOfMessage]


class CustomTool(Strict):
    """A tool of the client's; those that Anthropic runs itself are not here."""

    name: Name
    description: str | None = None
    input_schema: Json
    type: Literal["custom"] | None = None
    cache_control: CacheControl | None = None
    strict: bool | None = None
    eager_input_streaming: bool | None = None

    def described(self) -> dict[str, Any]:
        """As chat templates take it."""
        return described(Function(name=self.name, description=self.description, parameters=self.input_schema))


class Choice(Strict):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(Strict):
    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Tokens | None = None
    display: str | None = None


class OutputFormat(Strict):
    type: Literal["json_schema"]
    schema_: Json = Field(alias="schema")


class OutputConfig(Strict):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputFormat | None = None


class Metadata(Strict):
    user_id: str | None = None


class CountRequest(Strict):
    """A conversation whose tokens are to be counted."""

    model: str | None = None
    messages: Annotated[list[Message], Field(min_length=1)]
    system: str | list[TextBlock] | None = None
    tools: list[CustomTool] | None = Field(None, max_length=1024)
    tool_choice: Choice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    cache_control: CacheControl | None = None

    def asked(self, service: Service) -> list[Asked]:
        """The prompt alone. Raises RefusedError."""
        return [Asked(prompt=self._messages(), variables=self._variables(), **self._tools())]

    def _messages(self) -> list[Mapping[str, Any]]:
        system = self.system if isinstance(self.system, str) else _joined(self.system or [])
        begin = [{"role": "system", "content": system}] if system else []
        return [*begin, *(part for message in self.messages for part in _parts(message))]

    def _variables(self) -> dict[str, Any]:
        effort: str | None = None if self.output_config is None else self.output_config.effort
        if self.thinking is not None and self.thinking.type == "disabled":
            effort = "none"
        return thinking("on") if self.thinking is not None and effort is None else template_variables(effort, None)

    def _tools(self) -> dict[str, Any]:
        choice, tools = self.tool_choice or Choice(type="auto"), self.tools or []
        forced: Forced = choice.name or "" if choice.type == "tool" else choice.type == "any"
        if choice.type == "none":
            forced = None
        many = not choice.disable_parallel_tool_use
        return offered([tool.described() for tool in tools], forced, many=many)


class MessagesRequest(CountRequest):
    """A conversation to be answered. What is not named here is refused."""

    max_tokens: Tokens
    stream: bool | None = None
    stop_sequences: list[Annotated[str, Field(min_length=1, max_length=1000)]] | None = Field(
        None, max_length=MOST_STOPS
    )
    temperature: Annotated[float, Field(ge=0, le=1)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=1 << 30)] | None = None
    metadata: Metadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None

    def asked(self, service: Service) -> list[Asked]:
        """What is to be answered. Raises RefusedError."""
        chosen = sampling(
            max_new_tokens=self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            stop=tuple(self.stop_sequences or ()),
        )
        form = None if self.output_config is None else self.output_config.format
        return [
            Asked(
                prompt=self._messages(),
                sampling=chosen,
                variables=self._variables(),
                schema=None if form is None else form.schema_,
                **self._tools(),
            )
        ]


def _parts(message: Message) -> Iterator[Mapping[str, Any]]:
    """A message as chat templates take it; results of tools are messages of their own there."""
    if isinstance(message.content, str):
        yield {"role": message.role, "content": message.content}
        return
    if message.role == "assistant":
        yield _assistant(message.content)
        return
    for block in message.content:
        if isinstance(block, ToolResultBlock):
            text = block.content if isinstance(block.content, str) else _joined(block.content or [])
            said = f"Error: {text}" if block.is_error else text
            yield {"role": "tool", "tool_call_id": block.tool_use_id, "content": said}
    texts = [block for block in message.content if isinstance(block, TextBlock)]
    if texts or not message.content:
        yield {"role": message.role, "content": _joined(texts)}
    if any(isinstance(block, ThinkingBlock | ToolUseBlock) for block in message.content):
        raise RefusedError(400, "only the assistant's messages have thinking and tool_use", param="messages")


def _assistant(content: Sequence[Any]) -> Mapping[str, Any]:
    found: dict[str, Any] = {"role": "assistant"}
    found["content"] = _joined([block for block in content if isinstance(block, TextBlock)])
    if thinking := _BETWEEN.join(block.thinking for block in content if isinstance(block, ThinkingBlock)):
        found["reasoning_content"] = thinking
    calls = [
        {"id": each.id, "type": "function", "function": {"name": each.name, "arguments": json.dumps(each.input)}}
        for each in content
        if isinstance(each, ToolUseBlock)
    ]
    if calls:
        found["tool_calls"] = calls
    if any(isinstance(block, ToolResultBlock) for block in content):
        raise RefusedError(400, "a tool_result is the user's", param="messages")
    return found


def _joined(blocks: Sequence[TextBlock]) -> str:
    return _BETWEEN.join(block.text for block in blocks)
