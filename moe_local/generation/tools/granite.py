"""Granite 3 and 4 of the older kind: a mark, then an array of calls."""

from __future__ import annotations

from moe_local.generation.tools.base import Said, ToolFormat, json_calls
from moe_local.generation.tools.json_text import value_at


class Granite(ToolFormat):
    """`<|tool_call|>[{"name": ..., "arguments": {...}}]`"""

    marks = ("<|tool_call|>",)
    openings = ("<|tool_call|>", "<tool_call>[")
    specials = ("<|tool_call|>",)

    def read(self, text: str, since: int) -> tuple[list[Said], int] | None:
        found = value_at(text, text.index(">") + 1)
        if found is None:
            return None
        value, end = found
        return json_calls(value), end
