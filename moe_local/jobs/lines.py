"""What stands on a line of a job's input. A format is a class and a line in `FORMATS`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

from moe_local.errors import MoeLocalError
from moe_local.files import MOST_PROMPT
from moe_local.jobs.line import Defaults, Line, LineFormat
from moe_local.jobs.openai_lines import OpenAI
from moe_local.jobs.own_lines import Own, PlainText
from moe_local.units import format_size

MOST_LINE = 4 * MOST_PROMPT  # bytes
FORMATS: dict[str, Callable[[], LineFormat]] = {"jsonl": Own, "openai": OpenAI, "text": PlainText}


def understand(format: LineFormat, number: int, raw: bytes, defaults: Defaults) -> Line:
    """A line as it was read from a file: its request is tagged with it; what is wrong is told in `error`."""
    if len(raw) > MOST_LINE:
        return Line(number, error=f"the line has more than {format_size(MOST_LINE)}")
    try:
        line = format.read(number, raw.decode(), defaults)
        return line if line.request is None else replace(line, request=replace(line.request, tag=line))
    except UnicodeDecodeError as error:
        return Line(number, error=f"the line is not UTF-8 (byte {error.start})")
    except MoeLocalError as error:
        return Line(number, id=getattr(error, "line_id", None), error=str(error))


def guess_format(name: str, first: bytes) -> str:
    """Of a file's name and its first line that is not blank."""
    if name.endswith((".txt", ".text")):
        return "text"
    try:
        given = json.loads(first)
    except (ValueError, RecursionError):
        given = None
    if isinstance(given, dict) and {"custom_id", "body"} <= given.keys():
        return "openai"
    return "jsonl" if name.endswith((".jsonl", ".json", ".ndjson")) or first.lstrip()[:1] == b"{" else "text"
