"""What to do with experts that the device does not have: upload them, or multiply by them in RAM, where a CPU can.

Both go on beside the device's own work. Uploads take the link and warm the device tier; multiplying takes the CPU,
and once a layer the way there and back of what it is given and what it gives. Which is less, measured costs say.

Or zero-copy: the device's kernels read them over the link where they lie in RAM, and nobody asks which; see `mirror`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

UPLOAD, CPU, ZERO_COPY, AUTO = "upload", "cpu", "zero-copy", "auto"
MISSES = (AUTO, UPLOAD, CPU, ZERO_COPY)


class MissPolicy(Protocol):
    """Says how many of a layer's misses to upload; a CPU multiplies by the others where they lie in RAM."""

    def uploads(self, misses: int, rows: float) -> int:
        """Of so many misses that see so many rows each, on average; from 0 to all of them."""


class OnCpu:
    """Uploads nothing: what the device tier has room for stays there, and the CPU has the rest."""

    def uploads(self, misses: int, rows: float) -> int:
        return 0


@dataclass(frozen=True)
class Cheapest:
    """The split that is over first; of equals the one that uploads more. Seconds, all of them measured.

    Uploads and the CPU's work go on at the same time: a layer waits for the longer of both. So it is never longer
    than with all misses uploaded, nor with all on the CPU, as far as the costs are right.
    """

    upload: float  # of one expert
    round_trip: float  # of hidden states to the CPU and of what it gave back, with the waiting
    multiply: Mapping[int, float]  # by one expert, at so many rows

    def uploads(self, misses: int, rows: float) -> int:
        each = self.at(rows)
        return min(range(misses, -1, -1), key=lambda count: self._seconds(count, misses - count, each))

    def _seconds(self, uploaded: int, multiplied: int, each: float) -> float:
        beside = self.round_trip + multiplied * each if multiplied else 0.0
        return max(uploaded * self.upload, beside)

    def at(self, rows: float) -> float:
        """Seconds of multiplying so many rows by one expert: on lines between measured ones, in proportion beyond."""
        known = sorted(self.multiply)
        if rows <= known[0]:
            return self.multiply[known[0]]
        if rows >= known[-1]:
            return self.multiply[known[-1]] * rows / known[-1]
        place = bisect_left(known, rows)
        low, high = known[place - 1], known[place]
        part = (rows - low) / (high - low)
        return self.multiply[low] * (1 - part) + self.multiply[high] * part
