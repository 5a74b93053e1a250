"""Hermes, Qwen 2.5 and 3 and many others: a JSON object between tags.

https://github.com/NousResearch/Hermes-Function-Calling
"""

from __future__ import annotations

from collections.abc import Sequence

from moe_local.generation.grammar import quoted
from moe_local.generation.json_values import parse
from moe_local.generation.tools.base import Enclosed, Said, Tool, alternatives, json_call


class Hermes(Enclosed):
    """`<tool_call>{"name": ..., "arguments": {...}}</tool_call>`"""

    marks = ("<tool_call>",)
    openings = ("<tool_call>",)
    closing = "</tool_call>"
    specials = ("<tool_call>", "</tool_call>")

    def inside(self, text: str) -> list[Said]:
        return [json_call(parse(text))]

    def grammar(self, tools: Sequence[Tool], *, many: bool) -> str:
        call = (
            f"call: {self.mark('<tool_call>')} {quoted(chr(10))} object {quoted(chr(10))} {self.mark('</tool_call>')}"
        )
        calls = f"calls: call ({quoted(chr(10))} call)*" if many else "calls: call"
        return "\n".join([calls, call, alternatives(tools, "object", '{"name": "{name}", "arguments": ', "}")])
