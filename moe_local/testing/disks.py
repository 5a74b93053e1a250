"""Disks that misbehave, to wrap around a real reader: slow and out of order, or failing."""

from __future__ import annotations

import errno
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

from moe_local.errors import StorageError
from moe_local.memory.files import ReadAt


class SlowDisk:
    """Delays every read by a random time up to `seconds`, so that reads finish in any order."""

    def __init__(self, read_at: ReadAt, *, seconds: float = 0.005, seed: int = 0) -> None:
        self._read_at = read_at
        self._seconds = seconds
        self._random = random.Random(seed)
        self.reads = 0

    def __call__(self, file: Path, offset: int, buffer: memoryview) -> None:
        self.reads += 1
        time.sleep(self._random.random() * self._seconds)
        self._read_at(file, offset, buffer)


class FailingDisk:
    """Fails a read with an I/O error whenever `fails(number)` says so; reads are numbered from 0."""

    def __init__(self, read_at: ReadAt, fails: Callable[[int], bool]) -> None:
        self._read_at = read_at
        self._fails = fails
        self._lock = threading.Lock()
        self._reads = 0

    def __call__(self, file: Path, offset: int, buffer: memoryview) -> None:
        with self._lock:
            number = self._reads
            self._reads += 1
        if self._fails(number):
            buffer[:] = bytes(len(buffer))  # what was there is no longer to be trusted
            error = OSError(errno.EIO, "Input/output error")
            raise StorageError(
                f"reading {file} failed at byte {offset}: {error.strerror}", remedy="check the disk"
            ) from error
        self._read_at(file, offset, buffer)
