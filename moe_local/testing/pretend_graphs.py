"""CUDA graphs of a pretend device: what is asked for while one is recorded is not there until it is played.

Recording computes, as somebody may look at shapes, and then takes everything back: what was made holds no numbers,
and what was written to is as it was. As on a device, waiting meanwhile is an error, as is recording in the stream
that everybody uses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import torch
from torch import Tensor

from moe_local.testing.pretend_ops import tensors

if TYPE_CHECKING:
    from moe_local.testing.pretend_memory import Gpu


class PretendGraph:
    """What torch calls `CUDAGraph`."""

    gpu: Gpu  # of the class that a device makes of it

    def __init__(self) -> None:
        self._steps: list[Callable[[], Any]] = []
        self._made: list[Tensor] = []
        self._before: list[tuple[Tensor, Tensor]] = []  # what was written to, and what it held
        self.failed = False

    def capture_begin(self, pool: Any = None, capture_error_mode: str = "global") -> None:
        streams = self.gpu.streams
        if streams.current is streams.compute:
            raise RuntimeError("CUDA graphs must be captured on a non-default stream.")
        if self.gpu.recording is not None:
            raise RuntimeError("a capture is under way")
        if pool in self.gpu.pools and not len(self.gpu.pools[pool]):
            raise RuntimeError("use_count > 0 INTERNAL ASSERT FAILED")  # of a pool whose graphs have all gone
        self.gpu.pools.setdefault(pool, WeakSet()).add(self)
        self.gpu.recording = self

    def capture_end(self) -> None:
        if self.gpu.recording is not self:
            raise RuntimeError("no capture is under way")
        self.gpu.recording = None
        with torch.inference_mode():
            for target, content in reversed(self._before):
                target.copy_(content)
            for tensor in self._made:
                tensor.fill_(float("nan") if tensor.is_floating_point() else 1)
        if self.failed:
            self.gpu.is_stuck = True
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

    def replay(self) -> None:
        assert self.gpu.recording is None, "a graph is played while another is recorded"
        self.gpu.meter.launch("graph")
        with torch.inference_mode():
            for step in self._steps:
                step()

    def run(self, compute: Callable[..., Any], args: Sequence[Any], kwargs: Any, written: Sequence[Tensor]) -> Any:
        """The result of an operation on tensors of the CPU, which writes to those that are `written`."""
        self._before += [(each, each.clone()) for each in written]
        known = {each.untyped_storage()._cdata for each in tensors((args, kwargs))}
        out = compute(*args, **kwargs)
        held = [each for each in tensors(out) if each.untyped_storage()._cdata not in known]
        self._made += held

        def again() -> None:
            for target, source in zip(held, tensors(compute(*args, **kwargs)), strict=True):
                target.copy_(source)

        if written:
            self._steps.append(lambda: compute(*args, **kwargs))
        elif held:
            self._steps.append(again)
        return out
