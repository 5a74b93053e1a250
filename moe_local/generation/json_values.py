"""JSON that models and clients wrote, bounded in depth: what reads it later goes as deep, templates among it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

MOST_DEPTH = 100
_PLAIN = (str, int, float, list, type(None))  # bool is an int


def parse(text: str) -> Any:
    """The value of a text. Raises ValueError for what is no JSON, or is nested too deeply."""
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError(f"is nested deeper than {MOST_DEPTH}") from error
    assert_json(value)
    return value


def written(value: Any) -> str:
    """The text of a value. Raises ValueError for one that JSON has not."""
    assert_json(value)
    return json.dumps(value, ensure_ascii=False)


def assert_json(value: Any) -> None:
    """Raises ValueError for what JSON has not, like infinite numbers, and for what is nested too deeply."""
    level = [value]
    for _ in range(MOST_DEPTH):
        for each in level:
            _assert_plain(each)
        level = [inner for each in level for inner in _inside(each)]
    if level:
        raise ValueError(f"is nested deeper than {MOST_DEPTH}")


def _assert_plain(value: Any) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("has a number that JSON has not")
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise ValueError("has a name that is no text")
    elif not isinstance(value, _PLAIN):
        raise ValueError(f"has a value that JSON has not ({type(value).__name__})")


def _inside(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
