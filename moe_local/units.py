"""Sizes and shares, as people write them."""

from __future__ import annotations

import math
import re

from moe_local.errors import MoeLocalError

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

_UNITS = {
    "": 1,
    "b": 1,
    **{unit: 1000**power for power, unit in enumerate(("kb", "mb", "gb", "tb"), start=1)},
    **{unit: 1024**power for power, unit in enumerate(("kib", "mib", "gib", "tib"), start=1)},
    **{unit: 1024**power for power, unit in enumerate(("k", "m", "g", "t"), start=1)},
}
_MOST = 1 << 60  # bytes: beyond any machine
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Bytes in a size such as `6GiB`, `500 MB`, `1.5g` or `1048576`. Raises MoeLocalError."""
    match = _SIZE.fullmatch(text)
    unit = match and _UNITS.get(match[2].lower())
    size = float(match[1]) * unit if match and unit else math.inf
    if size > _MOST:
        shown = text if len(text) <= 40 else f"{text[:40]}..."
        raise MoeLocalError(f"{shown!r} is not a size", remedy="write it like 6GiB, 500MB or 1.5g")
    return int(size)


def parse_share(text: str) -> float:
    """A share in (0, 1] written as `50%` or `0.5`. Raises MoeLocalError."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise MoeLocalError(f"{text!r} is not a share of the experts", remedy="write it like 50% or 0.5")
    return value


def format_size(count: float) -> str:
    """A size for people: binary units, three figures (`9.4 MiB`)."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or abs(count) >= 100 else f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} TiB"
