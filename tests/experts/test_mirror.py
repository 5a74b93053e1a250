"""Layers that kernels run by themselves, from a table on the device; what they count, and when the host sees them."""

from __future__ import annotations

from pathlib import Path

import torch

from moe_local.experts.mirror import LEARNS_EACH
from moe_local.memory.files import FileReader
from moe_local.telemetry import Counters
from tests.experts.caches import EXPERTS, LAYERS, assert_right, cache_over


def test_a_layer_that_is_there_whole_is_not_fetched(file: Path, files: FileReader) -> None:
    cache = cache_over(file, files, EXPERTS, EXPERTS)
    index = torch.tensor([[1, 2], [2, EXPERTS]])  # of which one stands for no expert
    assert cache.found_all(0, index) is None
    cache.warm(0, range(EXPERTS))
    slots = cache.found_all(0, index)
    assert slots is not None
    for expert, slot in enumerate(slots.tolist()):
        assert_right(cache, 0, expert, slot)
    assert cache.found_all(1, index) is None
    assert (cache.counters.layer_hits, cache.counters.misses, cache.counters.forwards) == ([2, 0, 0], 0, 1)
    assert cache.snapshot().hits == cache.counters.hits == 2
    cache.close()
    assert cache.found_all(0, index) is None


def test_a_layer_that_others_take_slots_from_is_fetched(file: Path, files: FileReader) -> None:
    """Its policy has to learn, and after a fetch that did not end its books are not believed."""
    cache = cache_over(file, files, EXPERTS, None)
    index = torch.tensor([[1, 2]])
    for layer in (0, 1):
        cache.warm(layer, range(EXPERTS))
    assert cache.found_all(1, index) is not None
    fetching = cache.fetch(0, [1])
    next(fetching)
    assert cache.found_all(1, index) is None
    list(fetching)
    assert cache.found_all(1, index) is not None
    cache.resize_for(5)
    cache.resize_for(1)
    for layer in (0, 1):
        cache.warm(layer, range(EXPERTS))
    assert cache.found_all(1, index) is None
    cache.close()


def test_a_token_finds_in_ram_what_the_device_lacks(file: Path, files: FileReader) -> None:
    """Once all of it is there; and not each time, or the device tier would never learn."""
    cache = cache_over(file, files, 4, EXPERTS)
    token, two = torch.tensor([[1, 8]]), torch.tensor([[1, 8], [2, 3]])
    list(cache.fetch(1, [0, 1, 2]))
    assert cache.found_all(1, token) is None
    cache.fill(1)
    assert cache.found_all(1, two) is None
    before = cache.snapshot()
    kept = cache.residents()[1]
    rows = [cache.found_all(1, token) for _ in range(2 * LEARNS_EACH)]
    assert sum(row is None for row in rows) == 2
    found = next(row for row in rows if row is not None).tolist()
    assert [expert for expert, slot in enumerate(found) if slot >= 0] == kept
    counted = cache.counters - before
    passes, hits = 2 * LEARNS_EACH - 2, (1 in kept) + (8 in kept)
    assert (counted.hits, counted.misses, counted.host_hits) == (passes * hits, *[passes * (2 - hits)] * 2)
    assert counted.zero_copied == counted.misses
    assert counted.bytes_uploaded == counted.bytes_read == 0
    cache.close()


def test_what_fills_ram_is_not_counted_and_leaves_other_layers(file: Path, files: FileReader) -> None:
    cache = cache_over(file, files, 4, 6)
    cache.fill(0)
    assert cache.residents(in_ram=True) == [[], [], []]  # it has no room for all of them
    cache.close()
    cache = cache_over(file, files, 4, EXPERTS)
    cache.fill(0)
    assert cache.residents(in_ram=True) == [list(range(EXPERTS)), [], []]
    assert vars(cache.counters) == vars(Counters.of(LAYERS))
    cache.close()
