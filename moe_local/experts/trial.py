"""Whether reading ahead pays, and how far down a prediction: measured while the model runs."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from time import perf_counter

_TRIAL = 8  # tokens that are timed with reading ahead, and without
_GAIN = 0.97  # of the time without, at which reading ahead is worth its trouble
_LEAST_WAIT = 0.05  # of the time: with less there is not enough to gain
_LONG_WAIT = 0.2  # of the time: with more it pays as a rule, by about as much as such clocks are wrong
_LOSS = 1.03  # of the time without, beyond which it is then believed not to
_WORTH_READING = 0.6  # how often a rank must be right: a wrong read takes the link from a right one
_LEARNING = 0.01
_LONGEST = 512  # tokens between two trials, when the last ones agreed


class PrefetchDepth:
    """How far down a prediction is worth reading: to the last rank that is right often enough."""

    def __init__(self, most: int) -> None:
        self._right = [1.0] * most  # of each rank, the share that was right, fading
        self.ranks = most

    def learn(self, right: Sequence[bool]) -> None:
        for rank, hit in enumerate(right):
            self._right[rank] += (hit - self._right[rank]) * _LEARNING
        below = (rank for rank, share in enumerate(self._right) if share < _WORTH_READING)
        self.ranks = next(below, len(self._right))


class PrefetchTrial:
    """Whether something that costs a little pays: by the clock, both ways now and then.

    After a few tokens timed each way the faster goes on: for the longer, the more often it won. Where nothing is
    missed, or hardly any time is spent waiting, there is nothing to gain, and no trial; where much is, doubt is in
    favour.
    """

    def __init__(self, clock: Callable[[], float] = perf_counter) -> None:
        self._clock = clock
        self._last: float | None = None
        self._misses = 0
        self._stalled = 0.0  # seconds, when the last token began
        self._waited = 0.0  # of the timed tokens without
        self._times: dict[bool, list[float]] = {True: [], False: []}
        self._left = 0  # tokens until the next trial
        self._pause = 4 * _TRIAL
        self._winner = False
        self.on = False

    def pause(self) -> None:
        """What comes now is no token of a series: the time until the next one says nothing."""
        self._last = None

    def token(self, misses: int, stalled: float) -> None:
        """A token begins; so many `misses` and seconds `stalled` so far."""
        now = self._clock()
        last, self._last = self._last, now
        missed, self._misses = misses > self._misses, misses
        waited, self._stalled = stalled - self._stalled, stalled
        if last is None or not missed:
            return
        if self._left:
            self._left -= 1
            return
        self._times[self.on].append(now - last)
        self._waited += 0.0 if self.on else waited
        if len(self._times[self.on]) >= _TRIAL:
            self._judge()

    def _judge(self) -> None:
        with_, without = self._times[True], self._times[False]
        promising = not without or self._waited > _LEAST_WAIT * sum(without)
        if promising and min(len(with_), len(without)) < _TRIAL:
            self.on = not self.on
            return
        bound = _LOSS if self._waited > _LONG_WAIT * sum(without) else _GAIN
        best = promising and statistics.median(with_) < bound * statistics.median(without)
        self._pause = min(2 * self._pause, _LONGEST) if best == self._winner else 4 * _TRIAL
        self.on = self._winner = best
        self._times = {True: [], False: []}
        self._waited = 0.0
        self._left = self._pause
