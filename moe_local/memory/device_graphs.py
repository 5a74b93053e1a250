"""What a device is asked for, recorded once and then asked for again at once: CUDA graphs."""

from __future__ import annotations

import contextlib
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
        graph = _cuda.CUDAGraph()
        graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")  # others may go on with theirs
        self._graph = graph

    def end(self) -> Graph:
        """What has been recorded since `begin`."""
        recorded, self._graph = self._graph, None
        recorded.capture_end()
        graph: Graph = recorded
        return graph

    def _drop(self) -> None:
        if self._graph is not None:
            with contextlib.suppress(RuntimeError):  # of the operation that could not be recorded, once more
                self.end()
