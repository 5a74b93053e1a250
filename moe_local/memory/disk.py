"""The disk tier: records read from the user's files, several reads in flight."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Protocol

from moe_local.checkpoint.record import Extent
from moe_local.errors import StorageError
from moe_local.policies import Key

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

    def close(self) -> None:
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])


if hasattr(os, "preadv"):

    def _read(descriptor: int, buffer: memoryview, offset: int) -> int:
        return os.preadv(descriptor, [buffer], offset)

else:  # Windows has no positioned read in `os`
    import threading

    _seek_and_read = threading.Lock()

    def _read(descriptor: int, buffer: memoryview, offset: int) -> int:
        with _seek_and_read:
            os.lseek(descriptor, offset, os.SEEK_SET)
            data = os.read(descriptor, len(buffer))
        buffer[: len(data)] = data
        return len(data)


class RecordReader:
    """Starts reads of whole records and tells when each has arrived, in whatever order they do."""

    def __init__(self, read_at: ReadAt, *, parallel: int = PARALLEL_READS) -> None:
        self._read_at = read_at
        self._pool = ThreadPoolExecutor(parallel, thread_name_prefix="moe-local-read")
        self._finished: SimpleQueue[tuple[Key, BaseException | None]] = SimpleQueue()
        self._parts: dict[Key, int] = {}
        self._failed: dict[Key, BaseException] = {}

    def start(self, key: Key, extents: Sequence[Extent], target: memoryview) -> None:
        """Begins to read a record into `target`, which must stay untouched until `next_arrival` names `key`."""
        parts = [part for extent in extents for part in _parts(extent)]
        self._parts[key] = len(parts)
        for part in parts:
            self._pool.submit(self._read_part, key, part, target)

    def _read_part(self, key: Key, part: Extent, target: memoryview) -> None:
        try:
            self._read_at(part.file, part.offset, target[part.position : part.position + part.length])
            self._finished.put((key, None))
        except BaseException as error:
            self._finished.put((key, error))

    @property
    def in_flight(self) -> int:
        """Records begun and not yet told of."""
        return len(self._parts)

    def next_arrival(self) -> tuple[Key, BaseException | None]:
        """Waits until a record is whole or all its reads have ended, one of them badly. Main thread only."""
        while True:
            key, error = self._finished.get()
            if error is not None:
                self._failed.setdefault(key, error)
            self._parts[key] -= 1
            if not self._parts[key]:
                del self._parts[key]
                return key, self._failed.pop(key, None)

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


def _parts(extent: Extent) -> list[Extent]:
    starts = range(0, extent.length, _GOOD_READ)
    return [
        Extent(extent.file, extent.offset + at, min(_GOOD_READ, extent.length - at), extent.position + at)
        for at in starts
    ]
