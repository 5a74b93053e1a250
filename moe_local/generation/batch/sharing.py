"""How those who wait for their next token and those who wait for their first share the time."""

from __future__ import annotations


class TimeShares:
    """Reading prompts has half of the time while others decode, and more where more wait for it than decode.

    Then it has their share of all: the longer the first of many are alone, the more often is an expert brought in for
    few of them.
    """

    def __init__(self) -> None:
        self._owed = 0.0  # seconds that reading had, and for which decoding has not had its own since

    @property
    def may_read(self) -> bool:
        return self._owed <= 0

    def read(self, seconds: float) -> None:
        self._owed += seconds

    def decoded(self, seconds: float, running: int, reading: int) -> None:
        """A pass of those that ran, while the prompts of so many others were to be read."""
        self._owed = max(0.0, self._owed - seconds * max(1.0, reading / running))

    def nobody_decodes(self) -> None:
        self._owed = 0.0
