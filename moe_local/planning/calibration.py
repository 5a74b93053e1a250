"""What was measured of a machine once, and kept: how fast it uploads, and how fast its CPU multiplies.

A file, and no measurement at every start, so that the same model on the same machine does the same each time.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moe_local.errors import StorageError
from moe_local.experts.misses import Cheapest
from moe_local.files import atomic_write
from moe_local.paths import cache_dir


@dataclass(frozen=True)
class Calibration:
    """Seconds that one device and the CPU beside it take."""

    device: str  # its driver's name
    threads: int  # that the CPU multiplied with
    upload: float  # of a byte
    round_trip: float  # of one token's hidden states to the CPU and of what came of them back, with the waiting
    multiply: Mapping[int, float]  # by a byte of an expert, at so many rows

    def costs(self, record: int) -> Cheapest:
        """Of experts of `record` bytes."""
        each = {rows: seconds * record for rows, seconds in self.multiply.items()}
        return Cheapest(self.upload * record, self.round_trip, each)


def calibration_file() -> Path:
    return cache_dir() / "calibration.json"


def read_calibration(device: str, threads: int) -> Calibration | None:
    """What was measured of a device with so many threads; None where that is nothing, or the file is damaged."""
    known = _read().get(_key(device, threads))
    return None if known is None else _parsed(device, threads, known)


def write_calibration(found: Calibration) -> Path:
    """Keeps it beside those of other devices; -> the file. Raises StorageError where that cannot be written."""
    file, content = calibration_file(), asdict(found)
    known = {**_read(), _key(content.pop("device"), content.pop("threads")): content}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(file) as stream:
            stream.write(json.dumps(known, indent=2).encode())
    except OSError as error:
        raise StorageError(
            f"cannot write {file}: {error.strerror}", remedy="set MOE_LOCAL_HOME to another folder"
        ) from error
    return file


def _key(device: str, threads: int) -> str:
    return f"{device}, {threads} threads"


def _read() -> dict[str, Any]:
    try:
        found: Any = json.loads(calibration_file().read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _parsed(device: str, threads: int, known: Any) -> Calibration | None:
    try:
        multiply = {int(rows): float(seconds) for rows, seconds in known["multiply"].items()}
        found = Calibration(device, threads, float(known["upload"]), float(known["round_trip"]), multiply)
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
    figures = (found.upload, found.round_trip, *multiply.values())
    sound = multiply and min(multiply) > 0 and all(math.isfinite(each) and each > 0 for each in figures)
    return found if sound else None
