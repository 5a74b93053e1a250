"""Who joins, in which groups, and who is put back: budgets hold and nobody is lost, whatever the lengths."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from moe_local.generation.batch.scheduler import GROWTH, Scheduler, shared_beginning
from moe_local.model.buffers import columns

CONTEXT = 400


@dataclass(eq=False)
class Item:
    """A sequence that is told apart by nothing but its lengths."""

    length: int
    left: int
    shared: int = 0


items = st.builds(Item, st.integers(1, 200), st.integers(1, 200), st.just(0))
many = st.lists(items, min_size=1, max_size=30)


def _scheduler(places: int, kv_tokens: int, chunk: int = 64, *, padded: bool = True) -> Scheduler[Item]:
    return Scheduler[Item](places, columns(max(CONTEXT, kv_tokens)), chunk, padded=padded)


@settings(max_examples=200, deadline=None)
@given(many, st.integers(1, 9), st.integers(1, 4000), st.booleans())
def test_everybody_ends_within_the_budgets(waiting: list[Item], places: int, kv_tokens: int, padded: bool) -> None:
    """A batch from its first prompt to its last token, the cache as wide as its longest sequence."""
    scheduler = _scheduler(places, kv_tokens, padded=padded)
    scheduler.add(waiting)
    ended: list[Item] = []
    while scheduler.waiting or scheduler.running:
        while scheduler.put_back(max((item.length for item in scheduler.running), default=0)) is not None:
            pass
        for group in scheduler.admit():
            scheduler.start(group)
        running = list(scheduler.running)
        assert 1 <= len(running) <= places
        widest = max(item.length for item in running)
        assert len(running) == 1 or len(running) * columns(widest) <= columns(max(CONTEXT, kv_tokens))
        for item in running:
            item.length, item.left = item.length + 1, item.left - 1
        ended += [item for item in running if not item.left]
        scheduler.keep([number for number, item in enumerate(running) if item.left])
    assert {id(item) for item in ended} == {id(item) for item in waiting} and len(ended) == len(waiting)


@given(many, st.integers(1, 300), st.booleans(), st.integers(0, 9))
def test_groups_are_what_a_pass_takes(waiting: list[Item], chunk: int, padded: bool, running: int) -> None:
    """Along with a token of each that runs."""
    scheduler = _scheduler(len(waiting) + running, 1 << 20, chunk, padded=padded)
    scheduler.start([Item(1, 1) for _ in range(running)])
    scheduler.add(waiting)
    groups = scheduler.admit()
    assert [item.length for group in groups for item in group] == sorted(item.length for item in waiting)
    for group in groups:
        assert len(group) == 1 or len(group) * max(item.length for item in group) <= chunk - running
        assert padded or len({item.length for item in group}) == 1


@given(st.integers(1, 64), st.integers(1, 200), st.integers(0, 200))
def test_who_is_taken_on_can_grow(places: int, length: int, left: int) -> None:
    scheduler = _scheduler(places, 2048)
    scheduler.add(Item(length, left + 1) for _ in range(64))
    admitted = sum(map(len, scheduler.admit()))
    assert admitted == 1 or admitted * columns(length + min(left + 1, GROWTH)) <= 2048
    assert len(scheduler.waiting) == 64 - admitted


def test_few_do_not_join_before_more_can() -> None:
    scheduler = _scheduler(32, 1 << 20)
    scheduler.add(Item(10, 10) for _ in range(40))
    for group in scheduler.admit():
        scheduler.start(group)
    scheduler.keep(range(29))
    assert scheduler.admit() == [] and len(scheduler.waiting) == 8
    scheduler.keep(range(28))
    assert sum(map(len, scheduler.admit())) == 4
    assert len(scheduler.waiting) == 4


def test_who_is_put_back_is_the_next_to_join_and_computes_its_beginning() -> None:
    scheduler = _scheduler(3, CONTEXT)
    one, two, late = (Item(100, 300, shared=50) for _ in range(3))
    scheduler.add([late])
    scheduler.start([one, two])
    assert scheduler.put_back(100) is None
    assert scheduler.put_back(CONTEXT) is two
    assert (scheduler.running, list(scheduler.waiting), two.shared) == ([one], [two, late], 0)
    assert scheduler.put_back(CONTEXT) is None


def test_what_differs_in_its_shared_beginning_is_computed_apart() -> None:
    scheduler = _scheduler(4, 1 << 20, 1000)
    scheduler.add([Item(100, 5, shared=60), Item(100, 5, shared=60), Item(100, 5)])
    assert [len(group) for group in scheduler.admit()] == [2, 1]


@given(st.lists(st.integers(0, 3), max_size=20), st.lists(st.lists(st.integers(0, 3), min_size=1), max_size=6))
def test_a_shared_beginning_is_everybody_s(start: list[int], ends: list[list[int]]) -> None:
    prompts = [start + end for end in ends]
    common = shared_beginning(prompts, chunk=1)
    assert all(prompt[: len(common)] == common and len(common) < len(prompt) for prompt in prompts)
    if len(prompts) > 1:
        assert len(common) >= len(start)
    assert shared_beginning(prompts, chunk=len(prompts) * 100) == []
