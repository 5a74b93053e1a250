"""MiniMax M2 and later: several invocations between tags."""

from __future__ import annotations

import re

from moe_local.generation.tools.base import Enclosed, Said

_INVOKE = re.compile(r"""<invoke name=["']?([^"'>]+)["']?>(.*?)</invoke>""", re.S)
_PARAMETER = re.compile(r"""<parameter name=["']?([^"'>]+)["']?>\n?(.*?)\n?</parameter>""", re.S)


class MiniMax(Enclosed):
    """`<minimax:tool_call><invoke name="NAME"><parameter name="KEY">VALUE</parameter></invoke>...`"""

    marks = ("<minimax:tool_call>",)
    openings = ("<minimax:tool_call>",)
    closing = "</minimax:tool_call>"
    specials = ("<minimax:tool_call>", "</minimax:tool_call>")

    def inside(self, text: str) -> list[Said]:
        found = [Said(name, dict(_PARAMETER.findall(body)), untyped=True) for name, body in _INVOKE.findall(text)]
        if not found:
            raise ValueError("no invocation")
        return found
