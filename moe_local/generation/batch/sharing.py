"""How those who wait for their next token and those who wait for their first share the time."""

from __future__ import annotations


class TimeShares:
    """Reading prompts has half of the time while others decode, and more where more wait for it than decode.

    Then it has their share of all: the longer the first of many are alone, the more often is an expert brought in for
    few of them. Of a pass that does both, decoding has had what a token takes by itself.
    """

    def __init__(self) -> None:
        self._owed = 0.0  # seconds that reading had, and for which decoding has not had its own since
        self._token = 0.0  # seconds of the last pass that only decoded

    def may_read(self, running: int) -> bool:
        """Whether prompts may be read along with the next token of so many."""
        return not running or self._owed <= 0

    def passed(self, seconds: float, running: int, reading: int, *, read: bool) -> None:
        """A pass of those that run, while so many prompts were to be read; `read`: with some of these in it."""
        if running and not read:
            self._token = seconds
        alone = min(seconds, self._token) if running else 0.0
        owed = self._owed if running else 0.0
        if read:
            owed += seconds - alone
        self._owed = max(0.0, owed - alone * max(1.0, reading / running)) if running else owed
