"""gpt-oss: a message to a function, in the channel for comments.

https://developers.openai.com/cookbook/articles/openai-harmony. The channels are taken apart before: what is read here
is a message's header and its body.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from moe_local.generation.grammar import quoted
from moe_local.generation.tools.base import Said, Tool, ToolFormat, json_rule, parse_object

_TO = re.compile(r"to=(?:functions\.)?([\w.\-]+)")
_MESSAGE, _CHANNEL = "<|message|>", "<|channel|>"


class Harmony(ToolFormat):
    """`<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>{...}<|call|>`"""

    openings = (_CHANNEL,)

    def is_of(self, chat_template: str, vocabulary: Collection[str]) -> bool:
        return _CHANNEL in vocabulary and _MESSAGE in vocabulary

    def read(self, text: str, since: int) -> tuple[list[Said], int] | None:
        return None

    def finish(self, text: str) -> list[Said]:
        header, mark, body = text.partition(_MESSAGE)
        to = _TO.search(header)
        if to is None:
            raise ValueError("no call")
        return [Said(to[1], parse_object(body) if mark and body.strip() else {})]

    def grammar(self, tools: Sequence[Tool], *, many: bool) -> str:
        channel, constrain, message = map(self.mark, (_CHANNEL, "<|constrain|>", _MESSAGE))
        lines = [f"calls: {' | '.join(f'call_{n}' for n in range(len(tools)))}"]
        for number, tool in enumerate(tools):
            to = quoted(f"commentary to=functions.{tool['function']['name']} ")
            lines.append(
                f'call_{number}: {channel} {to} {constrain} "json" {message} args_{number} {self.mark("<|call|>")}'
            )
            lines.append(f"args_{number}: {json_rule(tool)}")
        return "\n".join(lines)
