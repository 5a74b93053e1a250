"""Caches that do not begin cold: with the experts that were hot when a model was last closed, or with all in RAM."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from moe_local.experts.cache import ExpertCache
from moe_local.files import atomic_write


def remember(cache: ExpertCache, file: Path) -> None:
    """Writes down what the cache keeps; what cannot be written is forgotten."""
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(file) as stream:
            stream.write(json.dumps(cache.residents()).encode())


def fill(cache: ExpertCache, report: Callable[[float], None]) -> None:
    """Reads all experts of the layers that the host tier keeps all of."""
    layers = len(cache.experts)
    for layer in range(layers):
        cache.fill(layer)
        report((layer + 1) / layers)


def warm_up(cache: ExpertCache, file: Path, report: Callable[[float], None]) -> None:
    """Reads what was remembered into the cache. A file that is absent, damaged or of another model is as none."""
    layers = _read(file, cache.experts)
    for layer, experts in enumerate(layers):
        cache.warm(layer, experts)
        report((layer + 1) / len(layers))


def _read(file: Path, counts: list[int]) -> list[list[int]]:
    try:
        found: Any = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return []
    sound = isinstance(found, list) and len(found) == len(counts) and all(map(_is_layer, found, counts))
    return found if sound else []


def _is_layer(experts: Any, count: int) -> bool:
    return (
        isinstance(experts, list)
        and all(type(expert) is int and 0 <= expert < count for expert in experts)
        and len(set(experts)) == len(experts)
    )
