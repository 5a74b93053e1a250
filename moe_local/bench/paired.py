"""Whether one series of measurements is faster than another that took turns with it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

LEAST = 6  # pairs: by chance alone five agree on a direction in one case of sixteen
_RESAMPLED = 2000
_CONFIDENCE = 0.95


def ratio_interval(before: Sequence[float], after: Sequence[float]) -> tuple[float, float] | None:
    """The interval that holds the ratio after/before with 95% confidence: of the geometric mean of the pairs' ratios,
    bootstrapped over the pairs. None where it cannot be told: fewer than `LEAST` pairs, or numbers not above zero.

    Load that comes and goes is in both of a pair, and so in no ratio. Bootstrap: Efron 1979,
    https://doi.org/10.1214/aos/1176344552.
    """
    if len(before) < LEAST or min(*before, *after) <= 0:
        return None
    logs = np.log(np.asarray(after) / np.asarray(before))
    drawn = np.random.default_rng(0).integers(0, len(logs), (_RESAMPLED, len(logs)))
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.exp(np.quantile(logs[drawn].mean(axis=1), [tail, 1 - tail]))
    return float(low), float(high)
