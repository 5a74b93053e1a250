"""The device's table of slots, beside the books; what is counted without being looked at."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moe_local.experts.device_table import NOWHERE, DeviceHits, DeviceTable, in_ram
from moe_local.memory.sender import Sender
from moe_local.testing.pretend_cuda import can_pretend, pretend_cuda

CPU = torch.device("cpu")
EXPERTS = (4, 7, 1)
WRITES = st.lists(
    st.tuples(st.integers(0, 2), st.sets(st.integers(0, 6)), st.booleans()).map(
        lambda step: (step[0], {expert: 3 * expert for expert in step[1] if expert < EXPERTS[step[0]]}, step[2])
    )
)


@given(WRITES)
def test_rows_say_what_was_written_last(writes: list[tuple[int, dict[int, int], bool]]) -> None:
    table = DeviceTable(CPU, EXPERTS)
    books: list[dict[int, int]] = [{}, {}, {}]
    for layer, slots, looked_at in writes:
        table.write(layer, slots, {})
        books[layer] = slots
        for number in range(3) if looked_at else ():
            assert table.row(number).tolist() == [books[number].get(expert, -1) for expert in range(EXPERTS[number])]
            assert table.is_whole(number) == (len(books[number]) == EXPERTS[number])


def test_rows_keep_their_addresses() -> None:
    table = DeviceTable(CPU, EXPERTS)
    before = table.row(1).data_ptr()
    table.write(1, {2: 5}, {})
    assert table.row(1).data_ptr() == before
    assert table.row(1).dtype == torch.int32


@given(st.lists(st.tuples(st.integers(0, 2), st.lists(st.integers(0, 9), min_size=2, max_size=6)), max_size=60))
def test_each_expert_of_a_pass_is_counted_once(passes: list[tuple[int, list[int]]]) -> None:
    """As needed; and as found if it lies on the device at the time."""
    slots = torch.full((3, 7), NOWHERE)
    hits = DeviceHits(CPU, EXPERTS, slots)
    wanted, there = [0, 0, 0], [0, 0, 0]
    for turn, (layer, chosen) in enumerate(passes):
        needed = {each for each in chosen[: len(chosen) // 2 * 2] if each < EXPERTS[layer]}
        if turn % 3 == 0:
            hits.add_up()
            slots[layer] = torch.tensor([each if (each + turn) % 2 else in_ram(each) for each in range(7)])
        hits.add(layer, torch.tensor(chosen)[: len(chosen) // 2 * 2].view(-1, 2))
        wanted[layer] += len(needed)
        there[layer] += int((slots[layer, list(needed)] >= 0).sum())
    assert hits.take() == (wanted, there)
    assert hits.take() == ([0, 0, 0], [0, 0, 0])


def test_a_row_knows_all_once_each_expert_lies_somewhere() -> None:
    table = DeviceTable(CPU, EXPERTS)
    table.write(0, {0: 5, 2: 0}, {0: 9, 1: 0})
    assert table.row(0).tolist() == [5, in_ram(0), 0, NOWHERE]
    assert not table.knows_all(0)
    table.write(0, {0: 5, 2: 0}, {3: 4, 1: 0})
    assert table.row(0).tolist() == [5, -2, 0, -6]
    assert table.knows_all(0) and not table.is_whole(0)


@pytest.mark.skipif(not can_pretend(), reason="torch has CUDA kernels of its own")
def test_rows_are_sent_without_a_wait_and_in_order() -> None:
    """The pretend device refuses copies that compute before them could see, and those whose source has changed."""
    rng = random.Random(0)
    with pretend_cuda() as gpu:
        table = DeviceTable(torch.device("cuda", 0), EXPERTS)
        with gpu.watch() as seen:
            for _ in range(200):
                layer = rng.randrange(3)
                table.write(layer, {expert: rng.randrange(99) for expert in range(EXPERTS[layer])}, {})
                written = table._written[layer, : EXPERTS[layer]].tolist()
                assert table.row(layer).mul(1).numbers.tolist() == written  # type: ignore[attr-defined]
        assert seen.syncs == 0
        assert gpu.streams.in_flight_at_most
        table.close()
        assert gpu.pinned_bytes == 0


@pytest.mark.skipif(not can_pretend(), reason="torch has CUDA kernels of its own")
def test_what_is_sent_may_change_at_once() -> None:
    source = torch.zeros(3, dtype=torch.int32)
    with pretend_cuda() as gpu:
        target = torch.zeros(3, dtype=torch.int32, device="cuda")
        sender = Sender(target.device, source.nbytes)
        for turn in range(20):
            source.fill_(turn)
            sender.send(target, source)
            source.fill_(-1)
            assert target.mul(1).numbers.tolist() == [turn] * 3  # type: ignore[attr-defined]
        assert gpu.streams.waits
        sender.close()
