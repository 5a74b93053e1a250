"""Memory that is given back to the system."""

from __future__ import annotations

import pytest
import torch

from moe_local.memory.limits import process_memory
from moe_local.memory.pages import HUGE, allocate, can_release, release, trim
from moe_local.memory.slab import Slab

pytestmark = pytest.mark.skipif(not can_release(), reason="this system takes no memory back")


def test_what_is_released_is_gone_and_comes_again() -> None:
    memory = allocate(64 * HUGE)
    memory.fill_(1)
    full = process_memory()
    release(memory[32 * HUGE + 5 :])
    assert process_memory() < full - 25 * HUGE
    assert memory[: 32 * HUGE + 5].eq(1).all()
    assert not memory[33 * HUGE :].any()
    memory.fill_(2)
    assert memory.eq(2).all()


def test_less_than_a_page_stays() -> None:
    memory = allocate(2 * HUGE)
    memory.fill_(3)
    release(memory[5 : HUGE - 5])
    assert memory.eq(3).all()


def test_a_slab_keeps_its_first_slots() -> None:
    slab = Slab(40, HUGE + 4096, torch.device("cpu"))
    for slot in range(40):
        slab[slot].fill_(slot)
    full = process_memory()
    slab.copy(39, 3)
    slab.release(20)
    assert process_memory() < full - 15 * HUGE
    assert all(slab[slot].eq(39 if slot == 3 else slot).all() for slot in range(20))
    slab.memory(39)[:] = b"\x07" * slab.slot_size
    assert slab[39].eq(7).all()


def test_trimming_gives_back_what_was_freed() -> None:
    many = [torch.ones(20_000) for _ in range(2000)]  # 80 KB each: too small to be given back by themselves
    keep = many[::2]
    full = process_memory()
    del many
    trim()
    assert process_memory() < full - (50 << 20)
    assert all(tensor.eq(1).all() for tensor in keep)


def test_memory_takes_no_more_than_its_bytes() -> None:
    """Not a huge page for what is left beside whole ones."""
    size, count = 3 * HUGE + HUGE // 4, 24
    before = process_memory()
    held = [allocate(size).fill_(1) for _ in range(count)]
    taken = process_memory() - before
    assert len(held) == count
    assert count * size <= taken + HUGE < count * (size + HUGE // 4)
