"""What is typed in a chat, understood: a message, or a command of the chat's own."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

_QUOTES = '"""'
_OPENING = re.compile(r'\s*(?:/\w+\s+)?"""')
_QUOTED = re.compile(r'\s*(?:/(?P<command>\w+)\s+)?"""(?P<inside>.*)"""\s*', re.DOTALL)
_BLANK_LINES = re.compile(r"\A(?:[^\S\n]*\n)+")


@dataclass(frozen=True)
class Command:
    """`/name argument`."""

    name: str
    argument: str


def read_line(line: str) -> Command | str:
    """A line of a pipe. Two slashes begin a message that begins with one."""
    text = line.strip()
    if text.startswith("//"):
        return text[1:]
    return _command(text) if text.startswith("/") else text


def read_typed(text: str, commands: Collection[str]) -> Command | str:
    """What was typed or pasted, of one line or several.

    All between triple quotes is one message, or the argument of the command before them. Several lines whose first
    word only looks like a command, such as a path, are a message.
    """
    quoted = _QUOTED.fullmatch(text)
    if quoted is not None and _QUOTES not in quoted["inside"]:
        inside = quoted["inside"].strip("\n")
        return Command(quoted["command"], inside) if quoted["command"] else inside
    if "\n" not in text.strip():
        return read_line(text)
    text = _BLANK_LINES.sub("", text).rstrip()
    if text.startswith("//"):
        return text[1:]
    named = _command(text) if text.startswith("/") else None
    return text if named is None or named.name not in commands else named


def is_open(text: str) -> bool:
    """Whether triple quotes began it and have not ended it: more lines belong to it."""
    opening = _OPENING.match(text)
    return opening is not None and _QUOTES not in text[opening.end() :]


def goes_on(text: str) -> bool:
    """Whether a backslash at its end, that no other one escapes, says that the message has another line."""
    is_command = text.lstrip().startswith("/") and not text.lstrip().startswith("//")
    return not is_command and (len(text) - len(text.rstrip("\\"))) % 2 == 1


def _command(text: str) -> Command:
    name, *argument = text[1:].split(maxsplit=1) or [""]
    return Command(name, argument[0] if argument else "")
