"""GLM 4.5 and later: the function's name, then keys and values between tags."""

from __future__ import annotations

import re

from moe_local.generation.tools.base import Enclosed, Said

_ARGUMENT = re.compile(r"<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>", re.S)


class Glm(Enclosed):
    """`<tool_call>NAME<arg_key>KEY</arg_key><arg_value>VALUE</arg_value></tool_call>`"""

    marks = ("<tool_call>", "<arg_key>")
    openings = ("<tool_call>",)
    closing = "</tool_call>"
    specials = ("<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>")

    def inside(self, text: str) -> list[Said]:
        name = text.partition("<arg_key>")[0].strip()
        if not name or any(letter.isspace() for letter in name):
            raise ValueError("no name")
        return [Said(name, {key.strip(): value for key, value in _ARGUMENT.findall(text)}, untyped=True)]
