"""Mistral: a token, then an array of calls, or the name of each and its arguments."""

from __future__ import annotations

import re
from collections.abc import Sequence

from moe_local.generation.grammar import quoted
from moe_local.generation.tools.base import Said, Tool, ToolFormat, alternatives, json_calls, json_rule, names
from moe_local.generation.tools.json_text import value_at

_MARK, _ARGS = "[TOOL_CALLS]", "[ARGS]"
_NAMED = re.compile(r"\s*([\w.\-]+)\s*(?:\[CALL_ID\]\s*\w+\s*)?(?:\[ARGS\])?\s*(?=\{)")
_PERHAPS = re.compile(r"\s*[\w.\-]*\s*(\[(C(A(L(L(_(I(D(\]\s*\w*\s*)?)?)?)?)?)?)?)?)?(\[(A(R(G(S(\])?)?)?)?)?)?\s*\Z")


class Mistral(ToolFormat):
    """`[TOOL_CALLS][{"name": ..., "arguments": {...}}]`, or `[TOOL_CALLS]NAME[ARGS]{...}` for each"""

    marks = (_MARK,)
    openings = (_MARK,)
    specials = (_MARK, _ARGS, "[CALL_ID]")

    def read(self, text: str, since: int) -> tuple[list[Said], int] | None:
        rest = text[len(_MARK) :]
        if not rest.strip():
            return None
        if rest.lstrip().startswith("[{"):
            found = value_at(text, len(_MARK))
            return None if found is None else (json_calls(found[0]), found[1])
        named = _NAMED.match(rest)
        if named is None:
            if _PERHAPS.match(rest) or rest.strip() == "[":
                return None
            raise ValueError("no name")
        found = value_at(text, len(_MARK) + named.end())
        return None if found is None else ([Said(named[1], found[0])], found[1])

    def grammar(self, tools: Sequence[Tool], *, many: bool) -> str:
        mark = self.mark(_MARK)
        if _ARGS in self._tokenizer.get_vocab():
            args = self.mark(_ARGS)
            call = " | ".join(f"{quoted(name)} {args} args_{n}" for n, name in enumerate(names(tools)))
            lines = [f"args_{number}: {json_rule(tool)}" for number, tool in enumerate(tools)]
            return "\n".join([f"calls: one{'+' if many else ''}", f"one: {mark} ({call})", *lines])
        objects = f"object ({quoted(', ')} object)*" if many else "object"
        calls = f"calls: {mark} {quoted('[')} {objects} {quoted(']')}"
        return "\n".join([calls, alternatives(tools, "object", '{"name": "{name}", "arguments": ', "}")])
