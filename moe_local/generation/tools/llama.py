"""Llama 3.1 and later: an answer that is a call, as JSON or as Python."""

from __future__ import annotations

import ast
from collections.abc import Sequence

from moe_local.generation.tools.base import Said, Tool, ToolFormat, alternatives, json_call
from moe_local.generation.tools.json_text import value_at

_MARK = "<|python_tag|>"


class Llama(ToolFormat):
    """`{"name": ..., "parameters": {...}}`, with `<|python_tag|>` before it or without, or `[name(key=value)]`"""

    marks = ("<|python_tag|>",)
    openings = (_MARK, "{", "[")
    first_only = True
    specials = (_MARK,)

    def is_of(self, chat_template: str, vocabulary: object) -> bool:
        json_too = '"parameters":' in chat_template and "<|start_header_id|>" in chat_template
        return _MARK in chat_template or json_too or "<|header_start|>" in chat_template

    def read(self, text: str, since: int) -> tuple[list[Said], int] | None:
        return None  # another call may follow each, and Python has brackets in strings of its own: known at the end

    def finish(self, text: str) -> list[Said]:
        said = text.removeprefix(_MARK).strip()
        return _pythonic(said) if said.startswith("[") or not said.startswith("{") else _objects(said)

    def grammar(self, tools: Sequence[Tool], *, many: bool) -> str:
        return "\n".join(["calls: object", alternatives(tools, "object", '{"name": "{name}", "parameters": ', "}")])


def _objects(text: str) -> list[Said]:
    """Calls set apart by semicolons. Raises ValueError for anything else."""
    found, at = [], 0
    while at < len(text):
        value = value_at(text, at)
        if value is None:
            raise ValueError("a call without an end")
        found.append(json_call(value[0]))
        rest = text[value[1] :].lstrip()
        if rest and not rest.startswith(";"):
            raise ValueError("more than calls")
        at = len(text) - len(rest.removeprefix(";").lstrip())
    return found


def _pythonic(text: str) -> list[Said]:
    """Calls in Python's syntax, of which nothing is run. Raises ValueError for anything else."""
    try:
        made = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError("no Python") from error
    calls = made.elts if isinstance(made, ast.List) else [made]
    found = [_call(each) for each in calls]
    if not found:
        raise ValueError("no call")
    return found


def _call(node: ast.expr) -> Said:
    if not isinstance(node, ast.Call) or node.args or not isinstance(node.func, ast.Name | ast.Attribute):
        raise ValueError("no call")
    try:
        given = {each.arg: ast.literal_eval(each.value) for each in node.keywords if each.arg is not None}
        return Said(ast.unparse(node.func), given)
    except (TypeError, RecursionError, MemoryError) as error:  # TypeError: a key that no dict can have
        raise ValueError("no values") from error
