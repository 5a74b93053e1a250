"""Whose turn it is: budgets hold, nobody is lost, nobody starves, whatever comes and however long it is."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from moe_local.generation.batch.turns import Turns
from moe_local.model.buffers import columns

CONTEXT = 400
CHUNK = 64


@dataclass(eq=False)
class Item:
    """A sequence that is told apart by nothing but its lengths."""

    length: int
    left: int
    at: int = 0


items = st.builds(Item, st.integers(1, 200), st.integers(1, 200))
arrivals = st.lists(st.tuples(st.integers(0, 5), items), min_size=1, max_size=25)


@settings(max_examples=200, deadline=None)
@given(arrivals, st.integers(1, 9), st.integers(1, 4000), st.booleans())
def test_everybody_ends_within_the_budgets(
    arriving: list[tuple[int, Item]], places: int, kv_tokens: int, padded: bool
) -> None:
    most = columns(max(CONTEXT, kv_tokens))
    turns = Turns[Item](places, most, CHUNK, padded=padded)
    left = list(arriving)
    ended: list[Item] = []
    while left or turns.waiting or turns.reading or turns.running:
        if left and (left[0][0] == 0 or not (turns.waiting or turns.reading or turns.running)):
            turns.waiting.append(left.pop(0)[1])
        elif left:
            left[0] = (left[0][0] - 1, left[0][1])
        while (back := turns.put_back()) is not None:
            back.at = 0
        turns.admit()
        taken = [*turns.running, *turns.reading]
        assert len(taken) <= places
        assert len(taken) == 1 or len(taken) * columns(max(item.length for item in taken)) <= most
        group = turns.read()
        if group:
            assert len(group) * max(item.length - item.at for item in group) <= CHUNK or len(group) == 1
            assert padded or len({item.length - item.at for item in group}) == 1
            for item in group:
                item.at = min(item.length, item.at + CHUNK)
            turns.start([item for item in group if item.at == item.length])
        for item in list(turns.running):
            item.length, item.at, item.left = item.length + 1, item.at + 1, item.left - 1
            if not item.left:
                turns.drop(item)
                ended.append(item)
    assert {id(item) for item in ended} == {id(item) for _, item in arriving} and len(ended) == len(arriving)


@given(st.integers(2, 30))
def test_the_oldest_prompt_is_read_on_however_many_short_ones_come(slices: int) -> None:
    turns = Turns[Item](2, 1 << 20, CHUNK, padded=True)
    long = Item(slices * CHUNK, 10)
    turns.waiting.append(long)
    turns.admit()
    passes = 0
    while long in turns.reading:
        short = Item(CHUNK, 1)
        turns.waiting.append(short)
        turns.admit()
        for item in turns.read():
            item.at = min(item.length, item.at + CHUNK)
            if item.at == item.length:
                turns.start([item])
        if short in turns.running:
            turns.drop(short)
        passes += 1
    assert passes <= 2 * slices


def test_the_first_to_come_is_the_first_to_get_a_place() -> None:
    turns = Turns[Item](2, 1 << 20, CHUNK, padded=True)
    everybody = [Item(5, 5) for _ in range(5)]
    turns.waiting.extend(everybody)
    assert turns.admit() == everybody[:2]
    turns.drop(everybody[0])
    assert turns.admit() == everybody[2:3]
    assert list(turns.waiting) == everybody[3:]


def test_prompts_of_like_length_are_read_together() -> None:
    turns = Turns[Item](8, 1 << 20, CHUNK, padded=True)
    lengths = [30, 5, 16, 29, 6, 31]
    turns.waiting.extend(Item(length, 5) for length in lengths)
    turns.admit()
    read = []
    while group := turns.read():
        read.append([item.length for item in group])
        for item in group:
            item.at = item.length
        turns.start(group)
    assert read == [[30, 29], [5, 6, 16], [31]]
