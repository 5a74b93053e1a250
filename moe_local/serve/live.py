"""What the page shows of the experts while a model runs: where they are, which are used, what that costs.

The engine's thread counts, while somebody watches, and no other thread does. Frames are made by the threads of those
who watch: they read the counts and the tiers' books without a lock and change nothing. A frame may show a pass that
is half done; the next one shows the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moe_local.engine import Engine
from moe_local.memory.limits import process_memory
from moe_local.telemetry import Counters

Frame = dict[str, Any]  # of JSON
ON_DISK, IN_RAM, ON_DEVICE = ".", "r", "d"
INTERVAL = 0.25  # seconds from one frame to the next


class LiveExperts:
    """A routing hook that changes nothing; `watch` gives what makes frames of it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._experts = engine.cache.experts
        self._own_memory = engine.load_plan.accelerator.has_own_memory
        self._watchers: set[object] = set()  # of any thread: one is added or taken out at once
        self._uses: _Uses | None = None  # made by the engine's thread, where the routers' choices are
        self._sampled = (0.0, Counters.of(len(self._experts)))  # when, and the totals then

    @property
    def watching(self) -> bool:
        """Whether anybody does."""
        return bool(self._watchers)

    def __call__(self, layer: int, index: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        if self._watchers:
            if self._uses is None:
                self._uses = _OnDevice(self._experts, index.device) if self._own_memory else _InRam(self._experts)
            self._uses.add(layer, index)
            if layer == 0 and self._own_memory:
                self._sample()
        return index, weights

    def _sample(self) -> None:
        """Keeps the totals, once an interval: a device counts some by itself, and only this thread may ask it."""
        if (now := monotonic()) - self._sampled[0] >= INTERVAL:
            self._sampled = now, self._engine.cache.snapshot()

    @contextmanager
    def watch(self) -> Iterator[Callable[[], Frame]]:
        """Gives what makes the next frame, for any thread, at most once an `INTERVAL`; uses are counted meanwhile.

        A frame has:

        - "time": seconds, of a clock that only goes on.
        - "layers": how many; "experts": how many each layer has.
        - "tiers": of each layer a text with a character an expert, `ON_DISK`, `IN_RAM` or `ON_DEVICE`. One that is on
          its way counts as there.
        - "used": of each layer [expert, tokens] since the watcher's last frame, of experts that had any.
        - "chosen": of each layer the experts that the last token of the latest pass was sent to.
        - "counters": totals since loading: "hits", "host_hits" (a part of "misses": found in RAM), "misses",
          "bytes_read", "stall_seconds"; and "tokens" that went through the layers while anybody watched.
        - "memory": bytes: "ram" of the process, "ram_budget"; "vram" and "vram_budget" (None where the device has no
          memory of its own).
        """
        watcher = object()
        self._watchers.add(watcher)
        before = self._counts()
        try:

            def frame() -> Frame:
                nonlocal before
                former, before = before, self._counts()
                return self._frame(before, before - former)

            yield frame
        finally:
            self._watchers.discard(watcher)

    def _counts(self) -> NDArray[np.int64]:
        """The uses of each expert so far, [layers, experts of the greatest + 1]; the last column is nobody's."""
        uses = self._uses
        return np.zeros((len(self._experts), max(self._experts) + 1), np.int64) if uses is None else uses.counts()

    def _frame(self, counts: NDArray[np.int64], used: NDArray[np.int64]) -> Frame:
        return {
            "time": round(monotonic(), 3),
            "layers": len(self._experts),
            "experts": self._experts,
            "tiers": self._tiers(),
            "used": [_pairs(row[:experts]) for row, experts in zip(used, self._experts, strict=True)],
            "chosen": [[] for _ in self._experts] if self._uses is None else self._uses.chosen(),
            "counters": self._counters(),
            "memory": self._memory(),
        }

    def _tiers(self) -> list[str]:
        cache = self._engine.cache  # another one after a resize
        letters = [np.full(experts, ord(ON_DISK), dtype=np.uint8) for experts in self._experts]
        _mark(letters, cache.residents(in_ram=True), IN_RAM)
        _mark(letters, cache.residents(), ON_DEVICE if self._own_memory else IN_RAM)
        return [layer.tobytes().decode() for layer in letters]

    def _counters(self) -> dict[str, float]:
        totals = self._sampled[1] if self._own_memory else self._engine.cache.counters
        return {
            "hits": totals.hits,
            "host_hits": totals.host_hits,
            "misses": totals.misses,
            "bytes_read": totals.bytes_read,
            "stall_seconds": round(totals.stall_seconds, 4),
            "tokens": 0 if self._uses is None else self._uses.tokens(),
        }

    def _memory(self) -> dict[str, int | None]:
        plan, accelerator = self._engine.plan, self._engine.load_plan.accelerator
        vram = (accelerator.held_memory(), plan.vram) if self._own_memory else (None, None)
        return {"ram": process_memory(), "ram_budget": plan.ram, "vram": vram[0], "vram_budget": vram[1]}


class _Uses(Protocol):
    """Counts what the routers choose, where they do."""

    def add(self, layer: int, index: Tensor) -> None:
        """The choices of a layer's router, [T, k]; its number of experts or more stands for none."""

    def counts(self) -> NDArray[np.int64]:
        """The uses of each expert so far, [layers, experts of the greatest + 1]; the last column is nobody's."""

    def tokens(self) -> int:
        """That went through the first layer."""

    def chosen(self) -> list[list[int]]:
        """Of each layer, what the last token that was there was sent to."""


class _InRam:
    """Counts choices that lie in RAM."""

    def __init__(self, experts: Sequence[int]) -> None:
        self._experts = experts
        self._counts = np.zeros((len(experts), max(experts) + 1), dtype=np.int64)
        self._tokens = 0
        self._chosen: list[NDArray[np.int64]] = [np.zeros(0, dtype=np.int64)] * len(experts)

    def add(self, layer: int, index: Tensor) -> None:
        experts = self._experts[layer]
        chosen = np.minimum(index.numpy(), experts)
        self._counts[layer] += np.bincount(chosen.reshape(-1), minlength=self._counts.shape[1])
        there = chosen if len(chosen) == 1 else chosen[(chosen < experts).any(axis=1)]
        if layer == 0:
            self._tokens += len(there)
        self._chosen[layer] = (there if len(there) else chosen)[-1].copy()

    def counts(self) -> NDArray[np.int64]:
        return self._counts.copy()

    def tokens(self) -> int:
        return self._tokens

    def chosen(self) -> list[list[int]]:
        return _real(self._chosen, self._experts)


class _OnDevice:
    """Counts on a device, so that nothing waits for it but a frame."""

    def __init__(self, experts: Sequence[int], device: torch.device) -> None:
        self._experts = experts
        with torch.inference_mode(False):  # what is made inside cannot be written to outside
            self._counts = torch.zeros(len(experts), max(experts) + 1, dtype=torch.int64, device=device)
            self._one = torch.ones(1, dtype=torch.int64, device=device)
            self._tokens = torch.zeros((), dtype=torch.int64, device=device)
        self._chosen: list[Tensor] = [self._one[:0]] * len(experts)

    def add(self, layer: int, index: Tensor) -> None:
        experts = self._experts[layer]
        chosen = index.clamp(max=experts).long()
        self._counts[layer].scatter_add_(0, chosen.view(-1), self._one.expand(chosen.numel()))
        there = (chosen < experts).any(dim=1)
        if layer == 0:
            self._tokens += there.sum()
        places = torch.arange(len(chosen), device=chosen.device)
        self._chosen[layer] = chosen[(places * there).argmax()]

    def counts(self) -> NDArray[np.int64]:
        counts: NDArray[np.int64] = self._counts.cpu().numpy()
        return counts

    def tokens(self) -> int:
        return int(self._tokens)

    def chosen(self) -> list[list[int]]:
        return _real([row.cpu().numpy() for row in self._chosen], self._experts)


def _real(chosen: Sequence[NDArray[np.int64]], experts: Sequence[int]) -> list[list[int]]:
    """Without what stands for no expert."""
    return [[each for each in row.tolist() if each < count] for row, count in zip(chosen, experts, strict=True)]


def _mark(letters: Sequence[NDArray[np.uint8]], residents: Sequence[Sequence[int]], letter: str) -> None:
    for layer, experts in zip(letters, residents, strict=False):  # no layers where there is no such tier
        layer[list(experts)] = ord(letter)


def _pairs(used: NDArray[np.int64]) -> list[list[int]]:
    """[expert, uses] of those that had any."""
    return [[int(expert), int(used[expert])] for expert in np.flatnonzero(used)]
