"""Where a JSON value ends in a text that goes on."""

from __future__ import annotations

from typing import Any

from moe_local.generation.json_values import parse

_ENDS = ("}", "]")


def value_at(text: str, begin: int) -> tuple[Any, int] | None:
    """The object or array that begins at a place, and where it ends; None where it does not end yet.

    Raises ValueError where there is none.
    """
    while begin < len(text) and text[begin].isspace():
        begin += 1
    if begin >= len(text):
        return None
    if text[begin] not in "{[":
        raise ValueError("no object and no array")
    end = _end(text, begin)
    return None if end is None else (parse(text[begin:end]), end)


def _end(text: str, begin: int) -> int | None:
    """Behind the bracket that closes the one at `begin`."""
    depth, quoted, at = 0, False, begin
    while at < len(text):
        letter = text[at]
        if quoted:
            at += letter == "\\"
            quoted = letter != '"'
        elif letter == '"':
            quoted = True
        elif letter in "{[":
            depth += 1
        elif letter in _ENDS:
            depth -= 1
            if not depth:
                return at + 1
        at += 1
    return None
