"""Sizes and shares, as people write them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

from moe_local.errors import MoeLocalError

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

_UNITS = {
    "": 1,
    "b": 1,
    **{unit: 1000**power for power, unit in enumerate(("kb", "mb", "gb", "tb"), start=1)},
    **{unit: 1024**power for power, unit in enumerate(("kib", "mib", "gib", "tib"), start=1)},
    **{unit: 1024**power for power, unit in enumerate(("k", "m", "g", "t"), start=1)},
    **{unit: 1024**power for power, unit in enumerate(("ki", "mi", "gi", "ti"), start=1)},
}
_MOST = 1 << 60  # bytes: beyond any machine
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Bytes in a size such as `6GiB`, `500 MB`, `16Gi`, `1.5g` or `1048576`. Raises MoeLocalError, also for a number
    without a unit that is too small to be meant in bytes.
    """
    match = _SIZE.fullmatch(text)
    unit = match and _UNITS.get(match[2].lower())
    size = float(match[1]) * unit if match and unit else math.inf
    if size > _MOST:
        shown = text if len(text) <= 40 else f"{text[:40]}..."
        raise MoeLocalError(f"{shown!r} is not a size", remedy="write it like 6GiB, 500MB or 1.5g")
    if match and not match[2] and 0 < size < MIB:
        number = text.strip()
        raise MoeLocalError(f"{number} without a unit is {number} bytes", remedy=f"did you mean {number}GiB?")
    return int(size)


def parse_budget(text: str, whole: Callable[[], int]) -> int:
    """Bytes in a size, or in a share such as `50%` of what `whole` says that there is. Raises MoeLocalError."""
    if not text.strip().endswith("%"):
        return parse_size(text)
    return int(parse_share(text.strip(), "memory") * whole())


def parse_share(text: str, of: str = "the experts") -> float:
    """A share in (0, 1] written as `50%` or `0.5`. Raises MoeLocalError."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = 0.0
    if 1 < value <= 100 and "%" not in text:
        raise MoeLocalError(f"{text} is more than all of {of}", remedy=f"did you mean {text}%?")
    if not 0 < value <= 1:
        raise MoeLocalError(f"{text!r} is not a share of {of}", remedy="write it like 50% or 0.5")
    return value


def format_size(count: float) -> str:
    """A size for people: binary units, three figures (`9.4 MiB`)."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or abs(count) >= 100 else f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} TiB"
