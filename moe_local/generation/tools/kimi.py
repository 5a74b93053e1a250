"""Kimi K2: a section of calls, each with its number."""

from __future__ import annotations

import re

from moe_local.generation.tools.base import Enclosed, Said, parse_object

_CALL = re.compile(
    r"<\|tool_call_begin\|>\s*(?:functions\.)?([^\s:<]+?)(?::\d+)?\s*<\|tool_call_argument_begin\|>(.*?)<\|tool_call_end\|>",
    re.S,
)


class Kimi(Enclosed):
    """`<|tool_calls_section_begin|><|tool_call_begin|>functions.NAME:0<|tool_call_argument_begin|>{...}...`"""

    marks = ("<|tool_calls_section_begin|>",)
    openings = ("<|tool_calls_section_begin|>",)
    closing = "<|tool_calls_section_end|>"
    specials = (
        "<|tool_calls_section_begin|>",
        "<|tool_calls_section_end|>",
        "<|tool_call_begin|>",
        "<|tool_call_argument_begin|>",
        "<|tool_call_end|>",
    )

    def inside(self, text: str) -> list[Said]:
        found = [Said(name, parse_object(given)) for name, given in _CALL.findall(text)]
        if not found:
            raise ValueError("no call")
        return found
