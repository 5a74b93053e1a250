"""Counters: what the expert cache did, and how long compute waited for it."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass
class Counters:
    """Running totals. Subtract two snapshots to get an interval."""

    hits: int = 0  # experts needed and found in the device tier
    misses: int = 0  # experts needed and not there
    host_hits: int = 0  # misses of the device tier that the host tier had
    bytes_read: int = 0  # from disk
    bytes_uploaded: int = 0  # host tier -> device tier
    stall_seconds: float = 0.0  # compute waited for a miss
    forwards: int = 0  # calls of an experts module

    @property
    def lookups(self) -> int:
        return self.hits + self.misses

    @property
    def hit_rate(self) -> float:
        """Share of needed experts that the device tier held, in [0, 1]; 1 when none was needed."""
        return self.hits / self.lookups if self.lookups else 1.0

    def snapshot(self) -> Counters:
        return Counters(**vars(self))

    def __sub__(self, earlier: Counters) -> Counters:
        return Counters(**{f.name: getattr(self, f.name) - getattr(earlier, f.name) for f in fields(self)})
