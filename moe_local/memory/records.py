"""Records read from files, several reads in flight: urgent ones first, told of as they end."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from queue import Empty, SimpleQueue
from time import perf_counter
from typing import NamedTuple

from moe_local.checkpoint.record import Extent
from moe_local.keys import Key
from moe_local.memory.files import ReadAt
from moe_local.telemetry import Span

PARALLEL_READS = 8  # enough for an NVMe disk to reach its bandwidth with reads of a megabyte
_GOOD_READ = 1 << 20  # bytes: longer extents are read in parts, so that one miss alone uses several reads


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

    def promote(self, key: Key) -> None:
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
