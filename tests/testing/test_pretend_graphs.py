"""A pretend device's graphs: nothing is computed until they are played, and then from what is there."""

from __future__ import annotations

import pytest
import torch

from moe_local.memory.device_graphs import GraphRecorder, waiting
from moe_local.testing.pretend_cuda import PretendCuda, can_pretend, pretend_cuda

pytestmark = pytest.mark.skipif(not can_pretend(), reason="torch has CUDA kernels of its own")


@pytest.fixture
def gpu():
    with pretend_cuda(memory=64 << 20, others=0) as device:
        yield device


def test_what_is_recorded_is_computed_when_it_is_played(gpu: PretendCuda) -> None:
    recorder = GraphRecorder(gpu.device)
    given, kept = torch.ones(3, device="cuda"), torch.zeros(4, device="cuda")
    with recorder.aside():
        recorder.begin()
        doubled = given * 2
        kept[1:].copy_(doubled + given)
        best = doubled.view(1, 3).topk(1)[1]
        graph = recorder.end()
    assert doubled.isnan().all() and not kept.any()
    for numbers in ([1.0, 5.0, 2.0], [7.0, 1.0, 1.0]):
        given.copy_(torch.tensor(numbers, device="cuda"))
        graph.replay()
        assert kept.tolist() == [0, *(3 * each for each in numbers)]
        assert doubled.tolist() == [2 * each for each in numbers]
        assert best.item() == numbers.index(max(numbers))


def test_playing_is_one_launch(gpu: PretendCuda) -> None:
    recorder = GraphRecorder(gpu.device)
    given = torch.ones(3, device="cuda")
    with recorder.aside():
        recorder.begin()
        (given + 1) * 2
        graph = recorder.end()
    with gpu.watch() as seen:
        graph.replay()
    assert (seen.launches, seen.syncs) == (1, 0)


def test_nobody_may_wait_meanwhile(gpu: PretendCuda) -> None:
    """And whoever does leaves torch's allocator behind that does not give back."""
    given = torch.ones(3, device="cuda")
    for waits in (given.tolist, given.cpu, lambda: given.copy_(torch.zeros(3)), torch.cuda.synchronize):
        recorder = GraphRecorder(gpu.device)
        torch.cuda.empty_cache()
        with pytest.raises(RuntimeError, match="capturing"), recorder.aside():
            recorder.begin()
            waits()
        with pytest.raises(RuntimeError, match="captures_underway"):
            torch.cuda.empty_cache()
        gpu.is_stuck = False
    assert given.tolist() == [1, 1, 1] and not torch.cuda.is_current_stream_capturing()


def test_waiting_shows_before_it_is_recorded(gpu: PretendCuda) -> None:
    given = torch.ones(3, device="cuda")
    with waiting(allowed=False):
        assert (given + 1).shape == (3,)
        with waiting(allowed=True):
            assert given.tolist() == [1, 1, 1]
        with pytest.raises(RuntimeError, match="synchronizing"):
            given.tolist()
    assert given.tolist() == [1, 1, 1]


def test_memory_goes_with_the_last_recording(gpu: PretendCuda) -> None:
    recorder = GraphRecorder(gpu.device)
    for _ in range(2):
        with recorder.aside():
            recorder.begin()
            kept = recorder.end()
    del kept
    with pytest.raises(RuntimeError, match="use_count"), recorder.aside():
        recorder.begin()


def test_it_is_recorded_aside(gpu: PretendCuda) -> None:
    with pytest.raises(RuntimeError, match="non-default stream"):
        GraphRecorder(gpu.device).begin()


def test_what_fails_leaves_the_device_as_it_was(gpu: PretendCuda) -> None:
    recorder = GraphRecorder(gpu.device)
    with pytest.raises(ZeroDivisionError), recorder.aside():
        recorder.begin()
        raise ZeroDivisionError
    assert (torch.ones(2, device="cuda") + 1).tolist() == [2, 2]
    recorder = GraphRecorder(gpu.device)
    with recorder.aside():
        recorder.begin()
        recorder.end().replay()
