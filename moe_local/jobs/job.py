"""A job: every line of its input answered, or its error told, exactly once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from moe_local.errors import MoeLocalError
from moe_local.generation.batch import Answer, Request
from moe_local.jobs.files import Source, Target
from moe_local.jobs.line import Defaults, Line, LineFormat
from moe_local.jobs.lines import understand

Answering = Callable[[Iterable[Request]], Iterator[Answer]]  # the requests' tags are lines, and come back


class Job:
    """Lines from a source to a target, in the order in which they are answered, or in that of the source: `ordered`.

    A line that makes no sense, or cannot be answered, becomes an error record; with `fail_fast` an error.
    """

    def __init__(
        self,
        source: Source,
        target: Target,
        format: LineFormat,
        defaults: Defaults,
        *,
        ordered: bool = False,
        fail_fast: bool = False,
    ) -> None:
        if target.done and (strange := target.done - {number for number, _ in source}):
            raise MoeLocalError(
                f"the answers have one to line {min(strange)}, which the input has not",
                remedy="take it out, or give --restart to begin anew",
            )
        self.lines = source.count
        self.before = len(target.done)  # lines answered by earlier runs
        self.failed_before = target.failed
        self.written = 0
        self.failed = 0  # of those written
        self._source = source
        self._target = target
        self._format = format
        self._defaults = defaults
        self._fail_fast = fail_fast
        self._ordered = ordered
        self._expected: deque[int] = deque()  # numbers of lines that are not written yet, if that is by order
        self._held: dict[int, Mapping[str, Any]] = {}
        self._seen: dict[str | int, int] = {}  # id -> number of the line that has it

    @property
    def left(self) -> int:
        """Lines that have no answer yet."""
        return self.lines - self.before - self.written

    def run(self, answering: Answering) -> None:
        """Writes a record for every line that has none. Raises StorageError where the target has no room."""
        for answer in answering(self._requests()):
            self._finish(answer.request.tag, answer)

    def _requests(self) -> Iterator[Request]:
        for number, raw in self._source:
            line = self._distinct(understand(self._format, number, raw, self._defaults))
            if number in self._target.done:
                continue
            if self._ordered:
                self._expected.append(number)
            if line.request is None:
                self._finish(line, None)
            else:
                yield line.request

    def _distinct(self, line: Line) -> Line:
        first = line.number if line.id is None else self._seen.setdefault(line.id, line.number)
        if first == line.number:
            return line
        return Line(line.number, line.id, error=f"the id {line.id!r} is that of line {first} already")

    def _finish(self, line: Line, answer: Answer | None) -> None:
        error = line.error or (answer and answer.error)
        if error is not None:
            if self._fail_fast:
                raise MoeLocalError(f"line {line.number}: {error}")
            self.failed += 1
        record = self._format.write(line, answer)
        if not self._ordered:
            self._write(record)
            return
        self._held[line.number] = record
        while self._expected and self._expected[0] in self._held:
            self._write(self._held.pop(self._expected.popleft()))

    def _write(self, record: Mapping[str, Any]) -> None:
        self._target.write(record)
        self.written += 1
