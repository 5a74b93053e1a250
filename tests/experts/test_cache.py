"""The expert cache under a disk that is slow, reorders and fails: no torn record, no evicted pin, no deadlock."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch

from moe_local.errors import MoeLocalError, StorageError
from moe_local.experts.cache import ExpertCache, Ready
from moe_local.experts.device_table import NOWHERE, in_ram
from moe_local.experts.residency import SlotTable
from moe_local.experts.transfers import State as TransferState
from moe_local.memory.files import FileReader
from moe_local.policies.base import Keys, Policy, State
from moe_local.testing import FailingDisk, SlowDisk, interrupted_after
from moe_local.testing.pretend_cuda import can_pretend, pretend_cuda
from tests.experts.caches import BLOCKING, EXPERTS, LATE, LAYERS, RECORD, STREAMS, assert_right, cache_over


def _weigh(state: State, keys: Keys, now: float, weights: Any) -> None:
    state[0, keys] = weights


BY_WEIGHT = Policy("by-weight", lambda keys: 1, _weigh, lambda state, keys, now: state[0, keys])


def _one_by_one(fetching: Iterator[Ready]) -> Iterator[tuple[int, int]]:
    return chain.from_iterable(zip(ready.experts, ready.slots, strict=True) for ready in fetching)


def _assert_all_right(cache: ExpertCache, layer: int, fetching: Iterator[Ready]) -> Iterator[int]:
    """The experts, in whichever tier they are ready."""
    for ready in fetching:
        slab = cache.host_slab if ready.in_ram else cache.slab
        assert slab is not None
        for expert, slot in zip(ready.experts, ready.slots, strict=True):
            assert (slab[slot].view(torch.float32) == 100.0 * layer + expert).all()
            yield expert


def _admits(rng: random.Random) -> Callable[[int], int] | None:
    """All misses are uploaded, or so many as chance has it."""
    return rng.choice([None, lambda misses: rng.randint(0, misses)])


def _assert_settled(cache: ExpertCache) -> None:
    """Only what is kept, and what was read ahead, has a slot."""
    loader = cache._loader
    assert cache._underway is None
    _assert_table_right(cache)
    assert not loader.waiting
    loader.settle()
    for tier in filter(None, (cache._device, cache._host)):
        kept = {(number, expert) for number, layer in enumerate(tier.layers) for expert in layer}
        assert all(key in tier.slots for key in kept)
        ahead = loader._transfers._by_key.values()
        where = (TransferState.THERE,) if tier is not loader._lower else tuple(TransferState)
        ahead = {each.key for each in ahead if each.state in where} - kept
        assert tier.slots.available == tier.slots.limit - len(kept) - len(ahead)


def _assert_table_right(cache: ExpertCache) -> None:
    """The device's table has the experts that are kept, each in its slot, whole; and those only.

    Of the host tier those of layers that it keeps all of, and that the device tier does not keep.
    """
    assert cache._mirror is not None
    below = cache._host
    for layer, kept in enumerate(cache.residents()):
        row: Any = cache._mirror._table.row(layer) + 0  # as compute would read it
        found = getattr(row, "numbers", row).tolist()
        wanted = dict.fromkeys(range(EXPERTS), NOWHERE)
        if below is not None and cache.keeps_in_ram(layer):
            for expert in below.layers[layer]:
                wanted[expert] = in_ram(slot := below.slots[layer, expert])
                assert (below.slab[slot].view(torch.float32) == 100.0 * layer + expert).all()
        for expert in kept:
            wanted[expert] = cache._device.slots[layer, expert]
            assert_right(cache, layer, expert, wanted[expert])
        assert found == list(wanted.values())


@pytest.fixture(autouse=True)
def _device(request: pytest.FixtureRequest) -> Iterator[None]:
    """A pretend one, for tests whose mover copies in its streams."""
    wanted = getattr(request.node, "callspec", None) is not None and request.node.callspec.params.get("mover")
    if wanted != STREAMS:
        yield
        return
    if not can_pretend():
        pytest.skip("torch has CUDA kernels of its own")
    with pretend_cuda() as gpu:
        yield
        assert not gpu.streams.pinned


TWO_TIERS = [(10, None, BLOCKING), (4, None, BLOCKING), (1, None, BLOCKING), (0, None, BLOCKING)]
THREE_TIERS = [(4, 6), (2, 2), (3, 1), (1, 1), (10, 10), (4, 0), (3, 10)]
TIERS = TWO_TIERS + [(*tiers, mover) for tiers in THREE_TIERS for mover in (BLOCKING, LATE, STREAMS)]


def _guess(rng: random.Random, layer: int) -> list[tuple[int, int]]:
    return [(layer, expert) for expert in rng.sample(range(EXPERTS), 4)]


@pytest.mark.parametrize("read_ahead", [False, True])
@pytest.mark.parametrize(("device", "host", "mover"), TIERS)
def test_what_is_asked_for_comes_once_and_right(
    file: Path, files: FileReader, device: int, host: int | None, mover: str, read_ahead: bool
) -> None:
    cache = cache_over(file, SlowDisk(files, seconds=0.001), device, host, mover=mover)
    rng = random.Random(0)
    for _ in range(60):
        cache.resize_for(rng.choice([1, 1, 5]))
        layer = rng.randrange(LAYERS)
        wanted = rng.sample(range(EXPERTS), rng.randint(0, EXPERTS))
        ahead = partial(_guess, rng, (layer + 1) % LAYERS) if read_ahead else tuple
        got = _assert_all_right(cache, layer, cache.fetch(layer, wanted, None, ahead, _admits(rng)))
        assert sorted(got) == sorted(wanted)
        _assert_settled(cache)
    counters = cache.counters
    assert counters.forwards == 60
    assert (counters.prefetched > 0) == read_ahead
    read = counters.misses - counters.host_hits - counters.prefetch_hits
    assert counters.bytes_read == RECORD * read + counters.bytes_prefetched
    assert (counters.computed_in_ram > 0) == (host is not None and device < EXPERTS)
    uploaded = 0 if host is None else counters.misses - counters.computed_in_ram
    in_vain = counters.uploaded_ahead - counters.uploaded_ahead_hits
    assert counters.bytes_uploaded == RECORD * (uploaded + in_vain)
    assert not counters.uploaded_ahead or (read_ahead and host is not None)
    cache.close()


@pytest.mark.parametrize(("device", "host", "mover"), TIERS)
def test_after_failures_and_early_ends_all_is_right(
    file: Path, files: FileReader, device: int, host: int | None, mover: str
) -> None:
    chaos = random.Random(1)
    disk = FailingDisk(SlowDisk(files, seconds=0.001), lambda number: chaos.random() < 0.05)
    cache = cache_over(file, disk, device, host, mover=mover)
    rng = random.Random(2)
    failures = stops = 0
    abandoned = []
    for _ in range(200):
        layer = rng.randrange(LAYERS)
        wanted = rng.sample(range(EXPERTS), rng.randint(1, EXPERTS))
        leave_after = rng.choice([None, None, rng.randint(1, EXPERTS)])
        cache.resize_for(rng.choice([1, 1, 5]))
        fetching = cache.fetch(layer, wanted, None, partial(_guess, rng, (layer + 1) % LAYERS), _admits(rng))
        try:
            for count, _ in enumerate(_assert_all_right(cache, layer, fetching), start=1):
                if count == leave_after:
                    stops += 1
                    abandoned.append(fetching)  # as a traceback keeps it, closed at any later time
                    break
            else:
                _assert_settled(cache)
        except StorageError:
            failures += 1
        if rng.random() < 0.2:
            abandoned.clear()
    assert failures > 3
    assert stops > 5
    cache.close()


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timers on Windows")
@pytest.mark.parametrize(("device", "host", "mover"), TIERS)
def test_an_interrupt_between_any_two_instructions(
    file: Path, files: FileReader, device: int, host: int | None, mover: str
) -> None:
    """A real signal, as Ctrl-C sends, at random moments of fetches and of the recovery from the one before."""
    cache = cache_over(file, SlowDisk(files, seconds=0.0002), device, host, mover=mover)
    rng = random.Random(3)
    interrupted = 0
    for _ in range(400):
        layer, wanted = rng.randrange(LAYERS), rng.sample(range(EXPERTS), rng.randint(1, EXPERTS))
        with interrupted_after(1e-5 + rng.expovariate(3000)) as struck:
            cache.resize_for(rng.choice([1, 1, 5]))
            ahead = partial(_guess, rng, (layer + 1) % LAYERS)
            got = list(_assert_all_right(cache, layer, cache.fetch(layer, wanted, None, ahead, _admits(rng))))
            assert sorted(got) == sorted(wanted)
        interrupted += len(struck)
        if not struck:
            _assert_table_right(cache)
    assert interrupted > 40
    cache.close()


def test_with_less_room_the_best_stay_and_are_not_read_again(file: Path, files: FileReader) -> None:
    cache = cache_over(file, files, 4, None)
    for layer in range(LAYERS):
        for expert in (1, 2, 3, 4):
            list(cache.fetch(layer, [expert]))
    cache.resize_for(5)
    assert cache.residents() == [[3, 4]] * LAYERS
    read = cache.counters.bytes_read
    for layer in range(LAYERS):
        for expert, slot in _one_by_one(cache.fetch(layer, [3, 4])):
            assert_right(cache, layer, expert, slot)
    assert cache.counters.bytes_read == read
    cache.resize_for(1)
    assert cache.residents() == [[3, 4]] * LAYERS
    list(cache.fetch(0, [7, 8]))
    assert cache.residents()[0] == [3, 4, 7, 8]
    _assert_settled(cache)
    cache.close()


def test_growing_that_was_interrupted_leaves_slots_for_all_that_is_kept(
    file: Path, files: FileReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = cache_over(file, files, 6, None)
    cache.resize_for(5)
    for struck in ("shrink", "retain"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(SlotTable, struck, lambda *args: (_ for _ in ()).throw(KeyboardInterrupt()))
            cache.resize_for(1)
        for layer in range(LAYERS):
            got = [expert for expert, _ in _one_by_one(cache.fetch(layer, range(EXPERTS)))]
            assert sorted(got) == list(range(EXPERTS))
    cache.close()


def test_a_closed_cache_says_so(file: Path, files: FileReader) -> None:
    cache = cache_over(file, files, 4, None)
    cache.close()
    with pytest.raises(MoeLocalError, match="closed"):
        next(cache.fetch(0, [1]))
    cache.close()


def test_an_expert_in_use_is_not_overwritten(file: Path, files: FileReader) -> None:
    """While one that is about to leave is held, reads go on into every slot that there is."""
    cache = cache_over(file, files, 1, None, BY_WEIGHT)
    list(cache.fetch(0, [0], [0.1]))
    fetching = cache.fetch(0, list(range(EXPERTS)), [0.1] + [0.9] * (EXPERTS - 1))
    held = next(fetching)
    assert (held.experts, 0 in cache._device.layers[0]) == ([0], False)
    while cache._loader._reader._finished.qsize() < 2:
        pass
    assert_right(cache, 0, 0, held.slots[0])
    assert sorted(expert for expert, _ in _one_by_one(fetching)) == list(range(1, EXPERTS))
    _assert_settled(cache)
    cache.close()


def test_what_arrived_together_goes_up_one_by_one(file: Path, files: FileReader) -> None:
    """Ten experts in RAM at once, and three slots above."""
    cache = cache_over(file, files, 1, EXPERTS)
    list(cache.fetch(0, [0]))
    fetching = cache.fetch(0, list(range(EXPERTS)))
    assert next(fetching).experts == [0]
    while cache._loader._reader._finished.qsize() < 2 * (EXPERTS - 1):
        pass
    assert sorted(expert for expert, _ in _one_by_one(fetching)) == list(range(1, EXPERTS))
    _assert_settled(cache)
    cache.close()


def _in_ram(file: Path, files: FileReader, mover: str) -> ExpertCache:
    """All experts of layer 1 in RAM, and only the last of them on the device."""
    cache = cache_over(file, files, 1, EXPERTS, mover=mover)
    cache.fill(1)
    assert cache.residents()[1] == [9] and cache.residents(in_ram=True)[1] == list(range(EXPERTS))
    return cache


@pytest.mark.parametrize("mover", [BLOCKING, LATE, STREAMS])
def test_what_is_in_ram_is_uploaded_ahead(file: Path, files: FileReader, mover: str) -> None:
    cache = _in_ram(file, files, mover)
    list(cache.fetch(0, [3], None, lambda: [(1, 9), (1, 7), (1, 8), (1, 6)]))
    before = cache.snapshot()
    assert before.uploaded_ahead == 2  # of three free slots one is left to demand
    got = [expert for expert, _ in _one_by_one(cache.fetch(1, [8, 2]))]
    assert sorted(got) == [2, 8]
    did = cache.snapshot() - before
    assert (did.uploaded_ahead_hits, did.bytes_uploaded, did.bytes_read) == (1, RECORD, 0)
    assert cache.residents(in_ram=True)[1] == list(range(EXPERTS))
    _assert_settled(cache)
    cache.close()


def test_what_was_uploaded_ahead_makes_room_for_demand(file: Path, files: FileReader) -> None:
    cache = _in_ram(file, files, LATE)
    list(cache.fetch(0, [3], None, lambda: [(1, expert) for expert in range(EXPERTS)]))
    assert cache.counters.uploaded_ahead == 2
    fetching = _assert_all_right(cache, 2, cache.fetch(2, range(EXPERTS)))
    assert sorted(fetching) == list(range(EXPERTS))
    assert sorted(_assert_all_right(cache, 1, cache.fetch(1, range(EXPERTS)))) == list(range(EXPERTS))
    assert cache.counters.uploaded_ahead_hits < 2
    _assert_settled(cache)
    cache.close()


def test_hits_come_before_misses(file: Path, files: FileReader) -> None:
    cache = cache_over(file, SlowDisk(files), 5, None)
    list(cache.fetch(0, [3, 7]))
    first, *rest = [ready.experts for ready in cache.fetch(0, [1, 3, 5, 7])]
    assert first == [3, 7]
    assert sorted(expert for experts in rest for expert in experts) == [1, 5]  # one by one, or both at once
    assert (cache.counters.hits, cache.counters.misses) == (2, 4)
    cache.close()
