"""Copies in streams of a device's: every order of arrival, and every mistake that the order could hide."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from moe_local.experts.mover import StreamMover
from moe_local.memory.accelerator import Accelerator, CudaCopies, Mark
from moe_local.memory.slab import Slab
from moe_local.testing.pretend_cuda import PretendCuda, can_pretend, pretend_cuda

pytestmark = pytest.mark.skipif(not can_pretend(), reason="torch has CUDA kernels of its own")
SLOTS, SIZE = 6, 8192
GPU = Accelerator(torch.device("cuda", 0))


@pytest.fixture(params=range(4))
def gpu(request: pytest.FixtureRequest) -> Iterator[PretendCuda]:
    with pretend_cuda(seed=request.param) as device:
        yield device


class _Player:
    """Uploads at random what it writes into slots in RAM, and reads what it has been told is there."""

    def __init__(self, copies: type[CudaCopies] = CudaCopies) -> None:
        self.host, self.device = Slab(SLOTS, SIZE, torch.device("cpu")), Slab(SLOTS, SIZE, GPU.device)
        assert self.host.pin(GPU) == self.host.nbytes
        self.mover = StreamMover(self.host, self.device, copies(GPU.device))
        self.random = random.Random(0)
        self.free_sources, self.free_targets = list(range(SLOTS)), list(range(SLOTS))
        self.uploads: dict[tuple[int, int], tuple[int, int, int]] = {}  # key: source, target, what was written
        self.there: dict[tuple[int, int], tuple[int, int]] = {}  # key: target, what it must hold
        self.number = self.arrivals = 0

    def step(self) -> None:
        self.random.choice([self.start, self.start, self.arrive, self.release, self.read, self.read])()

    def start(self) -> None:
        if not (self.free_sources and self.free_targets):
            return
        source = self.free_sources.pop(self.random.randrange(len(self.free_sources)))
        target = self.free_targets.pop(self.random.randrange(len(self.free_targets)))
        self.number += 1
        value = self.number % 200
        self.host[source].fill_(value)
        key = (0, self.number)
        self.uploads[key] = source, target, value
        self.mover.start(key, source, target)

    def arrive(self) -> None:
        started = self.uploads.keys() - self.there.keys()
        wait = self.random.random() < 0.3
        found = self.mover.arrived(wait=wait)
        assert found or not (wait and started)
        for key in found:
            _, target, value = self.uploads[key]
            self.there[key] = target, value
            self.arrivals += 1

    def release(self) -> None:
        for key in self.mover.released(wait=self.random.random() < 0.3):
            source, _, _ = self.uploads.pop(key)
            self.host[source].fill_(255)
            self.free_sources.append(source)

    def read(self) -> None:
        """Compute on a slot, which then falls free as soon as compute was issued."""
        if not self.there:
            return
        key = self.random.choice(list(self.there))
        if key in self.uploads and self.random.random() < 0.5:
            return
        target, value = self.there[key]
        assert (self.device[target] == value).all(), f"{key} is torn"
        if key not in self.uploads:
            del self.there[key]
            self.free_targets.append(target)


def test_whatever_the_order_of_arrivals_what_is_read_is_whole(gpu: PretendCuda) -> None:
    player = _Player()
    for number in range(3000):
        player.step()
        if number % 500 == 499:
            player.mover.drain()
            assert gpu.streams.in_flight == 0
            player.host.close()
            seen, player = player, _Player()
            assert seen.arrivals > 50
    assert gpu.streams.in_flight_at_most > 2


class _ComputeDoesNotWait(CudaCopies):
    def compute_after(self, mark: Mark) -> None:
        pass


class _CopiesDoNotWait(CudaCopies):
    def copy(self, target: Tensor, source: Tensor) -> Mark:
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)
        mark: Mark = self._stream.record_event()
        return mark


class _Passed:
    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        pass


class _SourcesAreReleasedAtOnce(CudaCopies):
    def copy(self, target: Tensor, source: Tensor) -> Mark:
        super().copy(target, source)
        return _Passed()

    def compute_after(self, mark: Mark) -> None:
        pass


@pytest.mark.parametrize("wrong", [_ComputeDoesNotWait, _CopiesDoNotWait, _SourcesAreReleasedAtOnce])
def test_every_fence_is_needed(wrong: type[CudaCopies]) -> None:
    with pretend_cuda() as gpu, pytest.raises(AssertionError, match=r"torn|overtake|written to"):
        player = _Player(wrong)
        for _ in range(3000):
            player.step()
        assert gpu.streams.in_flight_at_most
        raise RuntimeError("nothing was found")


def test_nobody_waits_for_a_copy_on_the_host(gpu: PretendCuda) -> None:
    player = _Player()
    for _ in range(SLOTS):
        player.start()
    before = gpu.streams.waits
    with gpu.watch() as seen:
        found = [player.mover.arrived(wait=True) for _ in range(SLOTS)]
    assert sum(map(len, found)) == SLOTS
    assert seen.syncs == 0 and gpu.streams.waits == before


def test_after_an_interrupt_that_lost_a_copy_nothing_moves(gpu: PretendCuda) -> None:
    player = _Player()
    player.start()
    player.mover._started.clear()
    player.mover.drain()
    assert gpu.streams.in_flight == 0
