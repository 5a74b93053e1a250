"""DeepSeek V3, R1 and V3.1: a section of calls, arguments with a fence around them or without."""

from __future__ import annotations

import re

from moe_local.generation.tools.base import Enclosed, Said, parse_object


def _mark(name: str) -> str:
    """A token of DeepSeek's: between full-width bars, with lower blocks for blanks."""
    return f"<\uff5ctool\u2581{name}\uff5c>"


_BEGIN, _END, _SEPARATOR = _mark("call\u2581begin"), _mark("call\u2581end"), _mark("sep")
_FIRST, _LAST = _mark("calls\u2581begin"), _mark("calls\u2581end")
_CALL = re.compile(rf"{re.escape(_BEGIN)}(.*?){re.escape(_SEPARATOR)}(.*?){re.escape(_END)}", re.S)
_FENCED = re.compile(r"\s*([^\s`]+)\s*```(?:json)?\s*(.*?)\s*```\s*\Z", re.S)


class DeepSeek(Enclosed):
    """A section of `NAME sep {...}`, or of `function sep NAME` and the object in a fence."""

    marks = (_FIRST,)
    openings = (_FIRST,)
    closing = _LAST
    specials = (_FIRST, _LAST, _BEGIN, _END, _SEPARATOR)

    def inside(self, text: str) -> list[Said]:
        found = [_said(first, second) for first, second in _CALL.findall(text)]
        if not found:
            raise ValueError("no call")
        return found


def _said(first: str, second: str) -> Said:
    """V3: `function` and the name with a fenced object; V3.1: the name and the object."""
    fenced = _FENCED.match(second) if first.strip() == "function" else None
    name, given = (fenced[1], fenced[2]) if fenced is not None else (first.strip(), second)
    return Said(name, parse_object(given))
