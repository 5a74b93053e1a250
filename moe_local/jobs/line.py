"""A line of a job's input, and what a format of lines is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from moe_local.generation.batch import Answer, Request
from moe_local.generation.sampling import Sampling
from moe_local.jobs.fields import Fields


@dataclass(frozen=True)
class Defaults:
    """What a line does not say itself."""

    sampling: Sampling
    system: str | None = None
    raw: bool = False


@dataclass(frozen=True)
class Line:
    """A line of input. `number` counts from 1; with an `error` there is no request in it."""

    number: int
    id: str | int | None = None
    request: Request | None = None
    error: str | None = None
    extra: Any = None  # what the format needs to write its answer


class LineFormat(Protocol):
    """One way to write requests and answers."""

    def read(self, number: int, text: str, defaults: Defaults) -> Line:
        """Raises MoeLocalError for what makes no sense."""

    def write(self, line: Line, answer: Answer | None) -> Fields:
        """What is said of a line: of its answer, or of its error."""
