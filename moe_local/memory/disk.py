"""The disk tier: records read from the user's files, several reads in flight."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from time import perf_counter
from typing import Protocol

from moe_local.checkpoint.record import Extent
from moe_local.errors import StorageError
from moe_local.policies import Key
from moe_local.telemetry import Span

PARALLEL_READS = 8  # enough for an NVMe disk to reach its bandwidth with reads of a megabyte
_GOOD_READ = 2 << 20  # bytes: longer extents are read in parts, so that one miss alone uses several reads


class ReadAt(Protocol):
    """Fills `buffer` from byte `offset` of `file`, or raises StorageError. Called from several threads."""

    def __call__(self, file: Path, offset: int, buffer: memoryview) -> None: ...


class FileReader:
    """`pread` into place; no GIL is held while the disk works."""

    def __init__(self) -> None:
        self._descriptors: dict[Path, int] = {}

    def open(self, files: Sequence[Path]) -> None:
        for file in files:
            self._descriptors[file] = self._open(file)

    @staticmethod
    def _open(file: Path) -> int:
        try:
            descriptor = os.open(file, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        except OSError as error:
            raise StorageError(f"cannot open {file}: {error.strerror}", remedy="check its permissions") from error
        if hasattr(os, "posix_fadvise"):
            # Records are read whole and in no order: what the kernel would read ahead is another expert.
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        return descriptor

    def __call__(self, file: Path, offset: int, buffer: memoryview) -> None:
        done = 0
        while done < len(buffer):
            try:
                count = _read(self._descriptors[file], buffer[done:], offset + done)
            except OSError as error:
                raise StorageError(
                    f"reading {file} failed at byte {offset + done}: {error.strerror}",
                    remedy="check the disk",
                ) from error
            if count == 0:
                raise StorageError(
                    f"{file} ended at byte {offset + done}, inside a tensor: it has changed since it was opened",
                    remedy="restore the file",
                )
            done += count

    def forget(self, extents: Sequence[Extent]) -> None:
        """Lets go of what the system has cached of these bytes: they are not read again soon."""
        if hasattr(os, "posix_fadvise"):
            for extent in extents:
                descriptor = self._descriptors[extent.file]
                os.posix_fadvise(descriptor, extent.offset, extent.length, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])


if hasattr(os, "preadv"):

    def _read(descriptor: int, buffer: memoryview, offset: int) -> int:
        return os.preadv(descriptor, [buffer], offset)

else:  # Windows has no positioned read in `os`
    _seek_and_read = threading.Lock()

    def _read(descriptor: int, buffer: memoryview, offset: int) -> int:
        with _seek_and_read:
            os.lseek(descriptor, offset, os.SEEK_SET)
            data = os.read(descriptor, len(buffer))
        buffer[: len(data)] = data
        return len(data)


class RecordReader:
    """Starts reads of whole records and tells when each has arrived, in whatever order they do.

    For one thread. An interrupt (Ctrl-C) may strike between any two of its instructions; what is in flight is then
    unknown until `drain`. Hence no executor, and no lock or thread is made after the beginning: what Python's own
    classes do there is not safe against interrupts. Putting into a SimpleQueue is: it happens or it does not.
    """

    def __init__(self, read_at: ReadAt, *, parallel: int = PARALLEL_READS) -> None:
        self._read_at = read_at
        self._jobs: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._finished: SimpleQueue[tuple[Key, float, float, BaseException | None]] = SimpleQueue()
        self._parts: dict[Key, int] = {}
        self._busy_since = 0.0
        self.busy_seconds = 0.0  # at least one read was under way
        self.spans: list[Span] | None = None  # to be appended to, if there is one
        self._parked: list[SimpleQueue[None]] = []  # where threads may wait that a drain has stopped
        self._threads = [
            threading.Thread(target=self._work, name="moe-local-read", daemon=True) for _ in range(parallel)
        ]
        for thread in self._threads:
            thread.start()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()

    def start(self, key: Key, extents: Sequence[Extent], target: memoryview) -> None:
        """Begins to read a record into `target`, which must stay untouched until `next_arrival` names `key`."""
        parts = [part for extent in extents for part in _parts(extent)]
        if not self._parts:
            self._busy_since = perf_counter()
        self._parts[key] = len(parts)
        for part in parts:
            self._jobs.put(partial(self._read_part, key, part, target))

    def _read_part(self, key: Key, part: Extent, target: memoryview) -> None:
        began = perf_counter()
        try:
            self._read_at(part.file, part.offset, target[part.position : part.position + part.length])
            self._finished.put((key, began, perf_counter(), None))
        except BaseException as error:
            self._finished.put((key, began, perf_counter(), error))

    @property
    def in_flight(self) -> int:
        """Records begun and not yet told of."""
        return len(self._parts)

    def next_arrival(self) -> Key:
        """Waits until a record is whole. Raises what its read raised; `drain` then, before anything else."""
        while True:
            key, began, ended, error = self._finished.get()
            if error is not None:
                raise error
            if self.spans is not None:
                self.spans.append(Span("read", *key, began, ended))
            self._parts[key] -= 1
            if not self._parts[key]:
                del self._parts[key]
                if not self._parts:
                    self.busy_seconds += ended - self._busy_since
                return key

    def drain(self) -> None:
        """Waits for the reads under way and forgets all of them: no target is written to any more.

        Every thread is brought to stop at a job of its own; when all have, none is reading.
        """
        self._cancel()
        stopped: SimpleQueue[None] = SimpleQueue()
        resume: SimpleQueue[None] = SimpleQueue()
        self._parked.append(resume)

        def stop() -> None:
            stopped.put(None)
            resume.get()

        for _ in self._threads:
            self._jobs.put(stop)
        for _ in self._threads:
            stopped.get()
        self._finished = SimpleQueue()
        self._parts = {}
        self._cancel()
        self._parked.clear()

    def _cancel(self) -> None:
        """Takes back the jobs not yet begun, and lets threads go on that a drain has stopped."""
        with contextlib.suppress(Empty):
            while True:
                self._jobs.get_nowait()
        for resume in self._parked:
            for _ in self._threads:
                resume.put(None)

    def close(self) -> None:
        """Ends the threads, each after the read it is at. May be called again."""
        self._cancel()
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()


def _parts(extent: Extent) -> list[Extent]:
    starts = range(0, extent.length, _GOOD_READ)
    return [
        Extent(extent.file, extent.offset + at, min(_GOOD_READ, extent.length - at), extent.position + at)
        for at in starts
    ]
