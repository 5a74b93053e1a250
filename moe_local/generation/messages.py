"""Messages as clients send them, made into what chat templates take: text, and calls of tools as objects."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from moe_local.errors import MoeLocalError
from moe_local.generation.json_values import parse

Message = dict[str, Any]  # {"role", "content"}, an answer's reasoning and tool_calls, a tool's tool_call_id
_BETWEEN = "\n\n"


def plain(messages: Sequence[Mapping[str, Any]]) -> list[Message]:
    """With contents that are text, and arguments that are objects. Raises MoeLocalError for what is neither."""
    found: list[Message] = []
    names: dict[Any, str] = {}
    for message in messages:
        if not isinstance(message.get("role"), str):
            raise MoeLocalError("a message has no role and content that are text")
        made = {**message, "content": _text(message.get("content"), empty=bool(message.get("tool_calls")))}
        if message.get("tool_calls"):
            made["tool_calls"] = [_call(call) for call in message["tool_calls"]]
            names.update({call.get("id"): call["function"]["name"] for call in made["tool_calls"]})
        if message["role"] == "tool" and message.get("tool_call_id") in names:
            made.setdefault("name", names[message["tool_call_id"]])
        found.append(made)
    return found


def with_arguments_as_text(messages: Sequence[Message]) -> list[Message]:
    """As some templates take them: the arguments of calls as JSON text."""

    def texts(call: Mapping[str, Any]) -> dict[str, Any]:
        function = call["function"]
        return {**call, "function": {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)}}

    return [
        {**message, "tool_calls": [texts(call) for call in message["tool_calls"]]}
        if message.get("tool_calls")
        else message
        for message in messages
    ]


def has_tools(messages: Sequence[Message]) -> bool:
    """Whether tools were called in a conversation."""
    return any(message["role"] == "tool" or message.get("tool_calls") for message in messages)


def _text(content: Any, *, empty: bool) -> str:
    if isinstance(content, str):
        return content
    if content is None and empty:
        return ""
    if not isinstance(content, list):
        raise MoeLocalError("a message has no role and content that are text")
    for part in content:
        if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise MoeLocalError(f"a message has a part of the kind {kind!r}; only text is understood")
    return _BETWEEN.join(part["text"] for part in content)


def _call(call: Any) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise MoeLocalError("a message has a tool call without a function's name")
    given = function.get("arguments")
    try:
        value = parse(given) if isinstance(given, str) and given.strip() else given or {}
    except ValueError as error:
        raise MoeLocalError(f"the arguments of a call of {function['name']} are no JSON ({error})") from error
    if not isinstance(value, dict):
        raise MoeLocalError(f"the arguments of a call of {function['name']} are no JSON object")
    return {**call, "function": {**function, "arguments": value}}
