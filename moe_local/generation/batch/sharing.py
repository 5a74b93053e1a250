"""How those who wait for their next token and those who wait for their first share the time."""

from __future__ import annotations


class TimeShares:
    """Reading prompts has half of the time while others decode, and more where more wait for it than decode.

    Then it has their share of all. The longer the first of many are alone, the more often is an expert brought in for
    few of them.
    """

    def __init__(self) -> None:
        self._owed = 0.0  # seconds that decoding is to have before prompts are read again

    @property
    def may_read(self) -> bool:
        return self._owed <= 0

    def read(self, seconds: float, reading: int, running: int) -> None:
        """So many sequences' prompts were being read, while so many others waited for their next token."""
        self._owed += seconds * min(1.0, running / reading)

    def decoded(self, seconds: float) -> None:
        self._owed = max(0.0, self._owed - seconds)

    def nobody_decodes(self) -> None:
        self._owed = 0.0
