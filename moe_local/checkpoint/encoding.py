"""How numbers are held: a format's name and its parameters."""

from __future__ import annotations

from dataclasses import dataclass

_PLACES = ("layout",)  # options that say where numbers lie and not what they are


@dataclass(frozen=True, slots=True)
class Encoding:
    """The name of a format (see `moe_local.formats`) and its parameters."""

    format: str
    options: tuple[tuple[str, int | str], ...] = ()

    def __str__(self) -> str:
        said = (
            value if isinstance(value, str) else f"{name[0]}{value}"
            for name, value in self.options
            if name not in _PLACES
        )
        return "-".join([self.format, *said])
