"""Qwen3-Coder, Qwen3.5, Nemotron 3: tags for the function and for each of its arguments."""

from __future__ import annotations

import re
from collections.abc import Sequence

from moe_local.generation.grammar import json_rule, quoted
from moe_local.generation.tools.base import Enclosed, Said, Tool, schema_of

_FUNCTION = re.compile(r"\s*<function=([^>\s]+)>(.*?)(?:</function>\s*)?\Z", re.S)
_PARAMETER = re.compile(r"<parameter=([^>\s]+)>\n?(.*?)\n?(?:</parameter>|(?=<parameter=)|\Z)", re.S)


class Qwen3Coder(Enclosed):
    """`<tool_call><function=NAME><parameter=KEY>VALUE</parameter></function></tool_call>`"""

    marks = ("<tool_call>", "<function=")
    openings = ("<tool_call>",)
    closing = "</tool_call>"
    specials = ("<tool_call>", "</tool_call>")

    def inside(self, text: str) -> list[Said]:
        found = _FUNCTION.match(text)
        if found is None:
            raise ValueError("no function")
        return [Said(found[1], dict(_PARAMETER.findall(found[2])), untyped=True)]

    def grammar(self, tools: Sequence[Tool], *, many: bool) -> str:
        open_, close = self.mark("<tool_call>"), self.mark("</tool_call>")
        calls = f"calls: call ({quoted(chr(10))} call)*" if many else "calls: call"
        lines = [calls, f'call: {open_} "\\n" function "\\n" {close}']
        lines.append(f"function: {' | '.join(f'function_{n}' for n in range(len(tools)))}")
        for number, tool in enumerate(tools):
            lines += _function(number, tool)
        return "\n".join([*lines, 'text[suffix="\\n</parameter>\\n"]: /(.|\\n)*/'])


def _function(number: int, tool: Tool) -> list[str]:
    """A rule for a tool, and one for each of its arguments: those that are needed, then others or not."""
    schema = schema_of(tool)
    properties, needed = schema.get("properties") or {}, schema.get("required") or []
    parts, lines = [], []
    for place, (key, kind) in enumerate(sorted(properties.items(), key=lambda item: item[0] not in needed)):
        rule = f"parameter_{number}_{place}"
        parts.append(rule if key in needed else f"{rule}?")
        lines.append(f"{rule}: {quoted(f'<parameter={key}>' + chr(10))} {_value(kind)}")
    name = quoted(f"<function={tool['function']['name']}>\n")
    return [f"function_{number}: {name} {' '.join(parts)} {quoted('</function>')}", *lines]


def _value(schema: object) -> str:
    """A value and what ends it: text as it is, everything else as JSON."""
    if not isinstance(schema, dict):
        return "text"
    if schema.get("type", "string") != "string":
        return f'{json_rule(schema)} "\\n</parameter>\\n"'
    if "enum" not in schema:
        return "text"
    choices = " | ".join(quoted(str(each)) for each in schema["enum"])
    return f'({choices}) "\\n</parameter>\\n"'
