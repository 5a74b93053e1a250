"""Lines of our own: JSON objects with a prompt or messages; and plain text, each line a prompt."""

from __future__ import annotations

from moe_local.errors import MoeLocalError
from moe_local.generation.batch import Answer, Request
from moe_local.jobs.fields import (
    LIMITS,
    OPTIONS,
    TEMPLATE,
    Fields,
    json_object,
    line_id,
    listed,
    naming,
    prompt_or_messages,
    sampling_options,
    template_variables,
    typed,
)
from moe_local.jobs.line import Defaults, Line

_OWN = ("id", "prompt", "messages", "system", "raw", "stop", "metadata")


class Own:
    """`{"prompt": ...}` or `{"messages": [...]}`, with `id`, `system`, `raw`, `metadata` and sampling options."""

    def read(self, number: int, text: str, defaults: Defaults) -> Line:
        given = json_object(text)
        id = line_id(given.pop("id", None))
        with naming(id):
            metadata = given.pop("metadata", None)
            for name in LIMITS:
                if name in given:
                    given.setdefault("max_new_tokens", given.pop(name))
            request = Request(
                prompt_or_messages(given),
                sampling_options(given, defaults.sampling, OPTIONS),
                system=typed(given, "system", str) or defaults.system,
                raw=bool(typed(given, "raw", bool, defaults.raw)),
                template_variables=template_variables(given),
            )
            if given:
                known = ", ".join([*_OWN, *TEMPLATE, *OPTIONS])
                raise MoeLocalError(f"{listed(given)} is not known here", remedy=f"use {known}")
        return Line(number, id, request, extra=metadata)

    def write(self, line: Line, answer: Answer | None) -> Fields:
        begin: Fields = {"id": line.id, "line": line.number}
        if line.extra is not None:
            begin["metadata"] = line.extra
        if answer is None or answer.error is not None:
            return {**begin, "error": line.error or (answer and answer.error)}
        return {
            **begin,
            "text": answer.text,
            **({"reasoning": answer.reasoning} if answer.reasoning else {}),
            "finish_reason": answer.finish_reason,
            "prompt_tokens": answer.prompt_tokens,
            "new_tokens": answer.new_tokens,
        }


class PlainText(Own):
    """Each line is a prompt."""

    def read(self, number: int, text: str, defaults: Defaults) -> Line:
        request = Request(text.rstrip("\r\n"), defaults.sampling, system=defaults.system, raw=defaults.raw)
        return Line(number, None, request)
