"""Interrupts at random moments, by a real signal, as Ctrl-C sends one."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from torch.autograd import grad_mode

# In torch's own switches an interrupt would leave them as they are, for all that comes later in the process.
_SPARED = (__file__, contextlib.__file__, grad_mode.__file__)


@contextmanager
def interrupted_after(seconds: float) -> Iterator[list[bool]]:
    """Raises KeyboardInterrupt between two instructions of the block, unless it ends sooner; never out of it.

    Yields a list that has an element once it struck. Main thread only; not on Windows.
    """
    struck: list[bool] = []
    armed = [True]

    def strike(number: int, frame: FrameType | None) -> None:
        inside = frame is not None and frame.f_code.co_filename in _SPARED
        if armed and not inside:
            armed.clear()
            struck.append(True)
            raise KeyboardInterrupt

    former = signal.signal(signal.SIGALRM, strike)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield struck
        armed.clear()
    except KeyboardInterrupt:
        pass
    finally:
        armed.clear()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
