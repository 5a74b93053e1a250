"""What a pretend device counts: launches and host syncs by the line that causes them, and bytes by storage."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakSet

import torch

from moe_local.testing.pretend_graphs import PretendGraph
from moe_local.testing.pretend_streams import Streams

_GRANULE = 512  # bytes: what CUDA's caching allocator rounds up to
_OWN = str(Path(__file__).parent / "pretend_")
_OURS = str(Path(__file__).parent.parent)
_SHOWN = (_OURS, f"{Path('/')}transformers{Path('/')}", "/tests/", "/benchmarks/")


def caller() -> str:
    """`file:line` of the innermost frame of this project's or of transformers' code."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if any(part in name for part in _SHOWN) and not name.startswith(_OWN):
            return f"{'/'.join(Path(name).parts[-2:])}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "elsewhere"


@dataclass
class Tally:
    """What happened on the device while it was watched: times by (file:line, operation)."""

    by_launch: Counter[tuple[str, str]] = field(default_factory=Counter)
    by_sync: Counter[tuple[str, str]] = field(default_factory=Counter)

    @property
    def launches(self) -> int:
        """Operations that compute on the device; views are none."""
        return self.by_launch.total()

    @property
    def syncs(self) -> int:
        """Times that the host waited for the device."""
        return self.by_sync.total()

    def told(self, most: int = 40) -> str:
        """The lines that cause most syncs and launches, for people."""
        parts = [
            f"{count:6d} {kind} {line} {name}"
            for kind, counts in (("sync  ", self.by_sync), ("launch", self.by_launch))
            for (line, name), count in counts.most_common(most)
        ]
        return "\n".join(parts)


class Allocation:
    """Bytes of the device that one storage holds, from now until nobody refers to it."""

    size = 0  # bytes; none yet where an interrupt kept it from being made

    def __init__(self, memory: Memory, size: int) -> None:
        self._memory = memory
        self.touched: dict[tuple[int, int], int] = {}  # ranges that compute used: the number of the last launch
        rounded = -(-size // _GRANULE) * _GRANULE
        memory.change(rounded)
        self.size = rounded

    def __del__(self) -> None:
        if self.size:
            self._memory.change(-self.size)


class Memory:
    """The bytes of a device of `total`, of which others hold `others`."""

    def __init__(self, total: int, others: int) -> None:
        self.total = total
        self.others = others  # bytes that other programs, and the driver for this one, hold
        self.live = self.peak = 0  # bytes
        self.fence = 1.0  # the part of the device's memory that this process may have
        self._lock = threading.RLock()

    @property
    def free(self) -> int:
        return self.total - self.others - self.live

    @property
    def _allowed(self) -> str:
        return "" if self.fence == 1 else f"{self.total * self.fence / 2**20:.2f} MiB allowed; "

    def change(self, size: int) -> None:
        """So many bytes more, or fewer. Raises torch.OutOfMemoryError, as torch does, where they are not there."""
        with self._lock:
            if size <= 0 or size <= min(self.free, int(self.total * self.fence) - self.live):
                self.live += size
                self.peak = max(self.peak, self.live)
                return
        raise torch.OutOfMemoryError(
            f"CUDA out of memory. Tried to allocate {size / 2**20:.2f} MiB. GPU 0 has a total capacity of"
            f" {self.total / 2**30:.2f} GiB of which {max(0, self.free) / 2**20:.2f} MiB is free. {self._allowed}"
        )


class Meter:
    """Counts for everybody who watches."""

    def __init__(self) -> None:
        self._watching: list[Tally] = []
        self.launched = 0
        self.error: str | None = None  # of the runtime's, that the next launch is accused of

    @contextmanager
    def watch(self) -> Iterator[Tally]:
        """Counts what happens inside."""
        tally = Tally()
        self._watching.append(tally)
        try:
            yield tally
        finally:
            self._watching = [each for each in self._watching if each is not tally]

    def launch(self, name: str) -> None:
        """An operation computes on the device. Raises RuntimeError for an error that was left behind."""
        if self.error is not None:
            error, self.error = self.error, None
            raise RuntimeError(f"CUDA error: {error}")
        self.launched += 1
        if self._watching:
            at = caller(), name
            for tally in self._watching:
                tally.by_launch[at] += 1

    def sync(self, name: str) -> None:
        """The host waits for the device."""
        if self._watching:
            at = caller(), name
            for tally in self._watching:
                tally.by_sync[at] += 1


class Gpu:
    """The device behind the tensors: what it holds, what it has done, and its streams."""

    device = torch.device("cuda", 0)
    unknown: frozenset[torch.dtype] = frozenset()  # types that it has no numbers of

    def __init__(self, memory: Memory, meter: Meter, streams: Streams) -> None:
        self.memory = memory
        self.meter = meter
        self.streams = streams
        self.recording: PretendGraph | None = None
        self.pools: dict[Any, WeakSet[PretendGraph]] = {}
        self.is_stuck = False  # as torch's allocator is after a capture that failed
        self.sync_mode = "default"  # torch's sync debug mode

    def wait(self, name: str) -> None:
        """The host waits for the device. Raises RuntimeError where it may not."""
        if self.recording is not None:
            self.recording.failed = True
            raise RuntimeError(f"CUDA error: operation not permitted when stream is capturing ({name})")
        if self.sync_mode == "error":
            raise RuntimeError(f"called a synchronizing CUDA operation ({name})")
        self.meter.sync(name)

    def watch(self) -> AbstractContextManager[Tally]:
        """A context manager that gives the `Tally` of what happens inside."""
        return self.meter.watch()
