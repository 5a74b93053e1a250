"""What the expert cache did, and how long compute waited for it: counters, and spans of time if asked for."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass
class Counters:
    """Running totals. Subtract two snapshots to get an interval."""

    layer_hits: list[int] = field(default_factory=list)  # experts needed and found in the device tier, of each layer
    layer_misses: list[int] = field(default_factory=list)  # needed and not there
    layer_host_hits: list[int] = field(default_factory=list)  # misses of the device tier that the host tier had
    computed_in_ram: int = 0  # misses that a CPU multiplied by in the host tier, beside the device
    zero_copied: int = 0  # misses that the device read in the host tier, over its link, and did not keep
    bytes_read: int = 0  # from disk
    bytes_uploaded: int = 0  # host tier -> device tier
    stall_seconds: float = 0.0  # compute waited for a miss
    reading_seconds: float = 0.0  # at least one read was under way
    uploading_seconds: float = 0.0  # as far as the main thread was held up by it
    forwards: int = 0  # calls of an experts module
    prefetched: int = 0  # experts that were read before they were asked for
    prefetch_hits: int = 0  # of those, the ones that were then needed
    bytes_prefetched: int = 0  # a part of bytes_read
    bytes_wasted: int = 0  # prefetched for nothing
    uploaded_ahead: int = 0  # experts that were uploaded before they were asked for
    uploaded_ahead_hits: int = 0  # of those, the ones that were then needed
    predicted: int = 0  # experts that the next layer was thought to need
    predicted_right: int = 0  # and did
    foreseeable: int = 0  # experts needed where there was a prediction

    @classmethod
    def of(cls, layers: int) -> Counters:
        return cls([0] * layers, [0] * layers, [0] * layers)

    @property
    def hits(self) -> int:
        return sum(self.layer_hits)

    @property
    def misses(self) -> int:
        return sum(self.layer_misses)

    @property
    def host_hits(self) -> int:
        return sum(self.layer_host_hits)

    @property
    def lookups(self) -> int:
        return self.hits + self.misses

    @property
    def hit_rate(self) -> float:
        """Share of needed experts that the device tier held, in [0, 1]; 1 when none was needed."""
        return self.hits / self.lookups if self.lookups else 1.0

    def snapshot(self) -> Counters:
        return deepcopy(self)

    def __sub__(self, earlier: Counters) -> Counters:
        return self._with(earlier, -1)

    def __add__(self, other: Counters) -> Counters:
        return self._with(other, 1)

    def _with(self, other: Counters, sign: int) -> Counters:
        def combined(ours: Any, theirs: Any) -> Any:
            if isinstance(ours, list):
                return [a + sign * b for a, b in zip(ours, theirs, strict=True)]
            return ours + sign * theirs

        result = Counters()
        for name, value in vars(self).items():
            setattr(result, name, combined(value, vars(other)[name]))
        return result


class Counting(Protocol):
    """What has running totals, and can be asked for them."""

    def snapshot(self) -> Counters:
        """The totals as they are now."""


@dataclass(frozen=True)
class Span:
    """Something that took time: "compute", "stall", "read" or "upload". Seconds of `perf_counter`."""

    kind: str
    layer: int
    expert: int | None
    begin: float
    end: float
