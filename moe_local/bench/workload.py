"""Prompts to measure with: a file's, or a few of our own."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moe_local.errors import MoeLocalError

_TEXT = ("prompt", "question", "instruction", "text")  # the fields that prompt files keep their text in
_LONGEST_NAME = 60


@dataclass(frozen=True)
class Prompt:
    """A user's message, and what else its file says of it."""

    name: str
    text: str
    fields: Mapping[str, Any] = field(default_factory=dict)

    def group(self, field_name: str) -> str:
        """The value of a field. Raises MoeLocalError when the prompt lacks it."""
        if field_name not in self.fields:
            known = ", ".join(sorted(self.fields)) or "none"
            raise MoeLocalError(f"prompt {self.name} has no field {field_name!r}", remedy=f"it has {known}")
        return str(self.fields[field_name])


OWN = (
    Prompt("sky", "Why is the sky blue?", {"category": "knowledge"}),
    Prompt("capitals", "What are the capitals of France, Italy and Japan?", {"category": "knowledge"}),
    Prompt("sort", "Write a Python function that sorts a list of words by length.", {"category": "code"}),
    Prompt("loop", "What does `for (int i = 0; i < 10; i += 2)` do in C?", {"category": "code"}),
    Prompt("apples", "Tom has 12 apples and gives a third of them away. How many are left?", {"category": "maths"}),
    Prompt("percent", "A coat costs 80 euros after 20% off. What did it cost before?", {"category": "maths"}),
    Prompt("fox", "Tell a short story about a fox who learns to swim.", {"category": "writing"}),
    Prompt("letter", "Write a friendly letter that asks a neighbour to be quieter.", {"category": "writing"}),
)


def prompts_hash(prompts: Sequence[Prompt]) -> str:
    """16 hexadecimal digits that two runs share where their prompts are the same, in the same order."""
    texts = json.dumps([prompt.text for prompt in prompts], ensure_ascii=True)
    return hashlib.sha256(texts.encode()).hexdigest()[:16]


def read_prompts(path: Path, limit: int | None = None) -> list[Prompt]:
    """The prompts of a file: JSON lines (also `.gz`), or plain text with one prompt a line.

    An object's text is its `prompt`, `question`, `instruction` or `text`, the first of its `turns`, or the last
    user's message of its `messages`. Raises MoeLocalError naming the line that has none.
    """
    prompts = []
    for prompt in _parsed(path):
        prompts.append(prompt)
        if limit is not None and len(prompts) >= limit:
            break
    if not prompts:
        raise MoeLocalError(f"{path} has no prompts", remedy="give one a line, or a JSON object a line")
    return prompts


def _parsed(path: Path) -> Iterator[Prompt]:
    as_json = ".json" in "".join(path.suffixes)
    for number, line in enumerate(_lines(path), start=1):
        if line.strip():
            yield _from_json(path, number, line) if as_json else Prompt(_name(number, line), line.strip())


def _lines(path: Path) -> list[str]:
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
        return content.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise MoeLocalError(f"{path} is not UTF-8 (byte {error.start})", remedy="convert it to UTF-8") from error
    except (OSError, EOFError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise MoeLocalError(f"cannot read the prompts {path}: {reason}", remedy="check the file") from error


def _from_json(path: Path, number: int, line: str) -> Prompt:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise MoeLocalError(f"line {number} of {path} is not JSON ({error})", remedy="correct it") from error
    text = _text(found) if isinstance(found, dict) else None
    if not text:
        raise MoeLocalError(
            f"line {number} of {path} has no prompt", remedy=f"give it a field {', '.join(_TEXT)}, turns or messages"
        )
    simple = {key: value for key, value in found.items() if isinstance(value, str | int | float | bool)}
    return Prompt(_name(number, text), text, simple)


def _text(found: dict[str, Any]) -> str | None:
    candidates: list[Any] = [found.get(name) for name in _TEXT]
    turns, messages = found.get("turns"), found.get("messages")
    if isinstance(turns, list):
        candidates += turns[:1]
    if isinstance(messages, list):
        candidates += [
            m.get("content") for m in reversed(messages) if isinstance(m, dict) and m.get("role") == "user"
        ]
    return next((text.strip() for text in candidates if isinstance(text, str) and text.strip()), None)


def _name(number: int, text: str) -> str:
    return f"{number}: {' '.join(text.split())[:_LONGEST_NAME]}"
