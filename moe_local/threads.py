"""How torch's threads wait for each other: asleep soon, so that other programs on the same cores do not stop them.

Between two parallel regions OpenMP's threads spin. Beside a busy program the one that would end the wait does not
run, and those that wait take its core. Read once, when the library is loaded: this must be imported before torch.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping

SPINS = 20_000  # iterations: see `benchmarks/busy_cores.py`
_THEIRS = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")  # of these the user's own settings stand


def wait_asleep(environment: MutableMapping[str, str] = os.environ) -> None:
    """Has libgomp, which torch's builds for Linux bring, spin for a moment only, unless the user said otherwise.

    The OpenMP library of torch's builds for macOS and Windows gives a core up while it spins (KMP_LIBRARY=throughput,
    its default), and reads neither of these.
    """
    if not any(name in environment for name in _THEIRS):
        environment["GOMP_SPINCOUNT"] = str(SPINS)
