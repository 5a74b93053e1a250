"""What a device is asked for, recorded once and then asked for again at once: CUDA graphs."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any, Protocol

import torch

_cuda: Any = torch.cuda  # much of it has no types


class Graph(Protocol):
    """A recording."""

    def replay(self) -> None:
        """Asks for all of it, with the same memory; the caller does not wait."""


class GraphRecorder:
    """Records what a device computes, in pieces.

    While a piece is recorded nothing is computed, and asking for a number that the device has is an error. Pieces
    take their temporaries from one memory: they are to be played in the order in which they were recorded.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = _cuda.Stream(device)  # the one that everybody uses cannot be recorded
        self._pool = _cuda.graph_pool_handle()
        self._graph: Any = None  # that is being recorded

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Inside, compute goes where it can be recorded; whatever is still being recorded at the end is dropped."""
        usual = _cuda.current_stream(self._device)
        self._stream.wait_stream(usual)
        try:
            with _cuda.stream(self._stream):
                try:
                    yield
                finally:
                    self._drop()
        finally:
            usual.wait_stream(self._stream)

    def begin(self) -> None:
        """From now on nothing is computed, but recorded."""
        self._graph = _cuda.CUDAGraph()  # known before it begins: an interrupt may come at once
        self._graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")  # others go on with theirs

    def end(self) -> Graph:
        """What has been recorded since `begin`."""
        graph: Graph = self._graph
        self._graph.capture_end()
        self._graph = None
        return graph

    def _drop(self) -> None:
        if self._graph is not None:
            with contextlib.suppress(RuntimeError):  # of the operation that could not be recorded, once more
                self._graph.capture_end()
            self._graph = None


@contextlib.contextmanager
def waiting(allowed: bool) -> Iterator[None]:
    """Inside, the host may wait for a CUDA device, or RuntimeError is raised where it would.

    It shows what cannot be recorded: torch may not recover from a recording that fails.
    """
    former = _cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that torch does not know of every wait
        _cuda.set_sync_debug_mode("default" if allowed else "error")
    try:
        yield
    finally:
        _cuda.set_sync_debug_mode(former)
