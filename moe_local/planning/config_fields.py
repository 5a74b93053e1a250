"""The fields of a config.json, each checked as it is read: it may say anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moe_local.errors import CheckpointError

_MOST = 1 << 24  # of any field: beyond every model


class Fields:
    """A config.json's fields, each checked as it is read. Every refusal is a CheckpointError with file and field."""

    def __init__(self, config: Mapping[str, Any], where: str) -> None:
        self._config = config
        self.where = where

    def whole(self, name: str, default: int | None = None, *, least: int = 1, most: int = _MOST) -> int:
        """A whole number; `default` where it is absent or null."""
        value = self._config.get(name)
        value = default if value is None else value
        if value is None:
            raise self.refuse(f"has no {name}")
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise self.refuse(f"says {name} {short(value)}, not a whole number from {least} to {most}")
        return value

    def nullable(self, name: str) -> int | None:
        """A whole number or null, and it must say which."""
        if name not in self._config:
            raise self.refuse(f"has no {name}")
        return None if self._config[name] is None else self.whole(name)

    def flag(self, field: tuple[str, bool]) -> bool:
        name, default = field
        value = self._config.get(name, default)
        if not isinstance(value, bool):
            raise self.refuse(f"says {name} {short(value)}, neither true nor false")
        return value

    def items(self, name: str, kind: type) -> list[Any] | None:
        """A list of `kind`, or None where it is absent or null."""
        value = self._config.get(name)
        if value is None:
            return None
        if not isinstance(value, list) or not all(type(item) is kind for item in value):
            raise self.refuse(f"says {name} {short(value)}, not a list of {kind.__name__}")
        return value

    def refuse(self, said: str) -> CheckpointError:
        return CheckpointError(f"{self.where} {said}", remedy="download it again")


def short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
