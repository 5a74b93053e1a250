"""Tools for models whose chat template knows none: told of in the system message, called in Hermes' way."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from moe_local.generation.tools.base import Tool

_TELLS = """\
You can call functions. Each line between these tags describes one, with a JSON schema of its arguments:
<tools>
{tools}
</tools>
To call one, write a JSON object with its name and its arguments between tags, and nothing else:
<tool_call>
{{"name": "a function's name", "arguments": {{"an argument's name": "its value"}}}}
</tool_call>
What it gives will be between <tool_response> and </tool_response>."""


def told_of_tools(messages: Sequence[Mapping[str, Any]], tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """A conversation of the same content whose messages have text alone, and whose system message tells of tools."""
    found = [_as_text(message) for message in messages]
    if not tools:
        return found
    told = _TELLS.format(tools="\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools))
    if found and found[0]["role"] == "system":
        found[0]["content"] = f"{found[0]['content']}\n\n{told}"
        return found
    return [{"role": "system", "content": told}, *found]


def _as_text(message: Mapping[str, Any]) -> dict[str, Any]:
    said = str(message["content"])
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{said}\n</tool_response>"}
    calls = [
        f"<tool_call>\n{json.dumps(call['function'], ensure_ascii=False)}\n</tool_call>"
        for call in message.get("tool_calls") or ()
    ]
    kept = {key: value for key, value in message.items() if key not in ("tool_calls", "tool_call_id", "name")}
    return {**kept, "content": "\n".join(part for part in (said, *calls) if part)}
