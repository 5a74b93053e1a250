"""The disk tier: records read from the user's files, several reads in flight."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from time import perf_counter
from typing import NamedTuple, Protocol

from moe_local.checkpoint.record import Extent
from moe_local.errors import StorageError
from moe_local.policies import Key
from moe_local.telemetry import Span

PAGE = 4096  # bytes: what direct reads must be aligned to
PARALLEL_READS = 8  # enough for an NVMe disk to reach its bandwidth with reads of a megabyte
_GOOD_READ = 1 << 20  # bytes: longer extents are read in parts, so that one miss alone uses several reads


class ReadAt(Protocol):
    """Fills `buffer` from byte `offset` of `file`, or raises StorageError. Called from several threads."""

    def __call__(self, file: Path, offset: int, buffer: memoryview) -> None: ...


class FileReader:
    """`pread` into place; no GIL is held while the disk works.

    With `direct`, what is aligned (records of a store are) comes from the disk straight into place, past the system's
    page cache: no copy, and no memory beside our own. Everything else is read through the page cache.
    """

    def __init__(self) -> None:
        self._descriptors: dict[Path, int] = {}
        self._direct: dict[Path, int] = {}

    def open(self, files: Sequence[Path], *, direct: bool = False) -> None:
        for file in files:
            self._descriptors[file] = descriptor = _open(file)
            if hasattr(os, "posix_fadvise"):
                # Records are read whole and in no order: what the kernel would read ahead is another expert.
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
            if direct and (past_cache := _open_direct(file)) is not None:
                self._direct[file] = past_cache

    @property
    def direct(self) -> bool:
        """Whether every file can be read past the page cache."""
        return self._direct.keys() == self._descriptors.keys()

    def __call__(self, file: Path, offset: int, buffer: memoryview) -> None:
        done = 0
        while done < len(buffer):
            rest = buffer[done:]
            try:
                count = _read(self._descriptor(file, offset + done, rest), rest, offset + done)
            except OSError as error:
                if error.errno == errno.EINVAL and self._direct.pop(file, None) is not None:
                    continue  # opened, but cannot: some network file systems
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

    def _descriptor(self, file: Path, offset: int, buffer: memoryview) -> int:
        direct = self._direct.get(file)
        if direct is None or (offset | len(buffer)) % PAGE or _address(buffer) % PAGE:
            return self._descriptors[file]
        return direct

    def forget(self, extents: Sequence[Extent]) -> None:
        """Lets go of what the system has cached of these bytes: they are not read again soon."""
        if hasattr(os, "posix_fadvise"):
            for extent in extents:
                descriptor = self._descriptors[extent.file]
                os.posix_fadvise(descriptor, extent.offset, extent.length, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        for descriptors in (self._descriptors, self._direct):
            while descriptors:
                os.close(descriptors.popitem()[1])


def _open(file: Path) -> int:
    try:
        return os.open(file, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    except OSError as error:
        raise StorageError(f"cannot open {file}: {error.strerror}", remedy="check its permissions") from error


def _open_direct(file: Path) -> int | None:
    """A descriptor that reads past the page cache; None where the file system has no such thing."""
    if not hasattr(os, "O_DIRECT"):
        return None
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_DIRECT)
    except OSError:
        return None
    try:
        with mmap.mmap(-1, PAGE) as page:
            os.preadv(descriptor, [page], 0)  # some network file systems open it and cannot
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _address(buffer: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


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


class _Job:
    """The reading of a part of a record, which one taker gets: a thread to do it, or who cancels it."""

    def __init__(self, key: Key, part: Extent, target: memoryview) -> None:
        self.key = key
        self.part = part
        self.target = target
        self._right = [True]

    def take(self) -> bool:
        """Whether the caller is the first to ask."""
        try:
            return self._right.pop()
        except IndexError:
            return False


class Arrival(NamedTuple):
    """A record that is whole, or the error that its reading ended with."""

    key: Key
    error: BaseException | None


class RecordReader:
    """Starts reads of whole records and tells when each has arrived, in whatever order they do.

    Reads that are urgent go before those that are not. For one thread. An interrupt (Ctrl-C) may strike between any
    two of its instructions; what is in flight is then unknown until `drain`. Hence no executor, and no lock or thread
    is made after the beginning: what Python's own classes do there is not safe against interrupts. Putting into a
    SimpleQueue or a deque is: it happens or it does not.
    """

    def __init__(self, read_at: ReadAt, *, parallel: int = PARALLEL_READS) -> None:
        self._read_at = read_at
        self._urgent: deque[_Job] = deque()
        self._later: deque[_Job] = deque()
        self._calls: SimpleQueue[Callable[[], bool]] = SimpleQueue()  # one for each job; False ends a thread
        self._finished: SimpleQueue[tuple[Key, float, float, BaseException | None]] = SimpleQueue()
        self._jobs: dict[Key, list[_Job]] = {}  # of the records in flight
        self._parts: dict[Key, int] = {}  # of those, how many parts are not yet told of
        self._failed: dict[Key, BaseException] = {}  # and what went wrong with one
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
        while self._calls.get()():
            pass

    def _do_one(self) -> bool:
        """On a reader thread: the most urgent job that is there."""
        for queue in (self._urgent, self._later):
            with contextlib.suppress(IndexError):
                job = queue.popleft()
                if job.take():
                    self._read_part(job)
                break
        return True

    def start(self, key: Key, extents: Sequence[Extent], target: memoryview, *, urgent: bool = True) -> None:
        """Begins to read a record into `target`, which must stay untouched until the record's arrival."""
        jobs = [_Job(key, part, target) for extent in extents for part in _parts(extent)]
        if not self._parts:
            self._busy_since = perf_counter()
        self._jobs[key] = jobs
        self._parts[key] = len(jobs)
        self._put(jobs, self._urgent if urgent else self._later)

    def _put(self, jobs: Sequence[_Job], queue: deque[_Job]) -> None:
        for job in jobs:
            queue.append(job)
            self._calls.put(self._do_one)

    def hurry(self, key: Key) -> None:
        """A record in flight has become urgent."""
        self._put(self._jobs[key], self._urgent)  # what is done from there is not done again from the other

    def cancel(self, key: Key) -> bool:
        """Takes back a record in flight. False if some of it is being read already: then it arrives, whole."""
        taken = [job for job in self._jobs[key] if job.take()]
        if len(taken) == self._parts[key]:
            self._forget(key, perf_counter())
            return True
        again = [_Job(job.key, job.part, job.target) for job in taken]  # it may be needed after all: never by halves
        self._jobs[key] = again
        self._put(again, self._later)
        return False

    def _forget(self, key: Key, now: float) -> None:
        del self._parts[key], self._jobs[key]
        if not self._parts:
            self.busy_seconds += now - self._busy_since

    def _read_part(self, job: _Job) -> None:
        began, part = perf_counter(), job.part
        try:
            self._read_at(part.file, part.offset, job.target[part.position : part.position + part.length])
            self._finished.put((job.key, began, perf_counter(), None))
        except BaseException as error:
            self._finished.put((job.key, began, perf_counter(), error))

    def __contains__(self, key: Key) -> bool:
        """Whether a record is in flight: begun and not yet told of."""
        return key in self._parts

    @property
    def in_flight(self) -> int:
        return len(self._parts)

    def wait(self) -> Arrival:
        """Waits until the reading of a record has ended."""
        while True:
            arrival = self._told(*self._finished.get())
            if arrival is not None:
                return arrival

    def next_arrival(self) -> Key:
        """Waits until a record is whole. Raises what its reading raised; `drain` then, before anything else."""
        key, error = self.wait()
        if error is not None:
            raise error
        return key

    def arrivals(self) -> Iterator[Arrival]:
        """Those that have ended by now."""
        with contextlib.suppress(Empty):
            while True:
                arrival = self._told(*self._finished.get_nowait())
                if arrival is not None:
                    yield arrival

    def _told(self, key: Key, began: float, ended: float, error: BaseException | None) -> Arrival | None:
        if self.spans is not None:
            self.spans.append(Span("read", *key, began, ended))
        self._parts[key] -= 1
        if error is not None:
            self._failed[key] = error
        if self._parts[key]:
            return None
        self._forget(key, ended)
        return Arrival(key, self._failed.pop(key, None))

    def drain(self) -> None:
        """Waits for the reads under way and forgets all of them: no target is written to any more.

        Every thread is brought to stop at a call of its own; when all have, none is reading.
        """
        self._cancel()
        stopped: SimpleQueue[None] = SimpleQueue()
        resume: SimpleQueue[None] = SimpleQueue()
        self._parked.append(resume)

        def stop() -> bool:
            stopped.put(None)
            resume.get()
            return True

        for _ in self._threads:
            self._calls.put(stop)
        for _ in self._threads:
            stopped.get()
        self._finished = SimpleQueue()
        self._parts, self._jobs, self._failed = {}, {}, {}
        self._cancel()
        self._parked.clear()

    def _cancel(self) -> None:
        """Takes back the jobs not yet begun, and lets threads go on that a drain has stopped."""
        self._urgent.clear()
        self._later.clear()
        with contextlib.suppress(Empty):
            while True:
                self._calls.get_nowait()
        for resume in self._parked:
            for _ in self._threads:
                resume.put(None)

    def close(self) -> None:
        """Ends the threads, each after the read it is at. May be called again."""
        self._cancel()
        for _ in self._threads:
            self._calls.put(lambda: False)
        for thread in self._threads:
            thread.join()


def _parts(extent: Extent) -> list[Extent]:
    starts = range(0, extent.length, _GOOD_READ)
    return [
        Extent(extent.file, extent.offset + at, min(_GOOD_READ, extent.length - at), extent.position + at)
        for at in starts
    ]
