"""A measurement in a process of its own, under a time limit: one that hangs or crashes costs itself and no other."""

from __future__ import annotations

import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from time import perf_counter
from typing import Any

Say = Callable[..., None]  # figures by name, kept as soon as they are said
_GRACE = 5.0  # seconds that a process has to end after it was asked to
_LEAST = 2.0  # seconds below which nothing is begun
_PRETENDED = 8 << 30  # bytes of memory of the pretend device


@dataclass(frozen=True)
class Measurement:
    """`run` is called with a `Say`; `about` says what of, and is in the results; `seconds` is its limit."""

    kind: str
    about: dict[str, Any]
    run: Callable[[Say], None]
    seconds: float


@dataclass
class Bench:
    """Measures one thing after the other until `seconds` are over, and keeps all that was said."""

    seconds: float
    pretend: bool = False
    found: list[dict[str, Any]] = field(default_factory=list)
    _began: float = field(default_factory=perf_counter)

    @property
    def left(self) -> float:
        """Seconds until nothing goes on."""
        return self.seconds - (perf_counter() - self._began)

    @contextmanager
    def within(self, share: float) -> Iterator[None]:
        """What is measured inside takes at most a share of the time that is left."""
        until, self.seconds = self.seconds, self.seconds - (1 - share) * self.left
        try:
            yield
        finally:
            self.seconds = until

    def measure(self, wanted: Measurement) -> dict[str, Any]:
        """What `wanted` said, with its wall clock seconds, and `failed`: why it did not come to its end, or None."""
        result: dict[str, Any] = {"kind": wanted.kind, **wanted.about, "failed": None}
        self.found.append(result)
        limit = min(wanted.seconds, self.left)
        if limit < _LEAST:
            result["failed"] = "not begun: no time was left"
            return result
        began = perf_counter()
        _run_apart(wanted.run, limit, self.pretend, result)
        result["wall_seconds"] = round(perf_counter() - began, 1)
        print(wanted.kind, *wanted.about.values(), result["wall_seconds"], result["failed"] or "", file=sys.stderr)
        return result


def _run_apart(run: Callable[[Say], None], limit: float, pretend: bool, result: dict[str, Any]) -> None:
    context = _context()
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(theirs, run, pretend), daemon=True)
    process.start()
    theirs.close()
    try:
        _listen(ours, limit, result)
    except EOFError:
        process.join(_GRACE)
        result["failed"] = f"its process ended with {process.exitcode}"
    finally:
        process.terminate()
        process.join(_GRACE)
        process.kill()


def _listen(connection: Connection, limit: float, result: dict[str, Any]) -> None:
    """Keeps what is said until the end is. Raises EOFError where the process ends before that."""
    until = perf_counter() + limit
    while connection.poll(max(0.0, until - perf_counter())):
        said = connection.recv()
        if said is None:
            return
        result.update(said)
    result["failed"] = f"not ended after {limit:.0f} s"


def _context() -> Any:
    """Processes that begin with everything imported, where the system can copy them."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.gpu.plan"])
    return context


def _child(connection: Connection, run: Callable[[Say], None], pretend: bool) -> None:
    os.dup2(2, 1)  # only tables go to stdout
    try:
        with _device(pretend):
            run(lambda **figures: connection.send(figures))
    except BaseException as error:
        traceback.print_exc(limit=-4)
        first = str(error).strip().partition("\n")[0]
        connection.send({"failed": f"{type(error).__name__}: {first}"})
    connection.send(None)


def _device(pretend: bool) -> Any:
    if not pretend:
        return nullcontext()
    import torch

    from moe_local.testing.pretend_cuda import pretend_cuda

    torch.set_num_threads(1)
    return pretend_cuda(memory=_PRETENDED)
