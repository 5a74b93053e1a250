"""Beginnings that are kept: the longest is found, budgets hold, and what is given away is nobody else's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from hypothesis import given
from hypothesis import strategies as st

from moe_local.generation.batch.kept import LEAST, KeptBeginnings
from moe_local.generation.kv_reuse import common_beginning
from moe_local.model.buffers import columns


class Row:
    """A cache that is the tokens themselves."""

    def __init__(self, ids: Sequence[int]) -> None:
        self.ids = list(ids)

    def beginning(self, number: int, tokens: int) -> Self:
        return type(self)(self.ids[:tokens])

    def crop(self, tokens: int) -> None:
        del self.ids[tokens:]


texts = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 3)).map(lambda cut: [cut[0]] * 40 + [cut[1]] * 40), max_size=12
)


@given(texts, st.integers(0, 2), st.integers(0, 90), st.sampled_from([100, 300, 10_000]), st.booleans())
def test_what_is_taken_is_the_longest_beginning_and_nothing_else(
    kept: list[list[int]], asked: int, length: int, spare: int, cut: bool
) -> None:
    held = KeptBeginnings[Row](cut=cut)
    for ids in kept:
        held.shrink(spare - columns(len(ids)))
        if columns(len(ids)) <= spare:
            held.add(ids, Row(ids))
    assert held.columns <= spare
    prompt = [asked] * length + [9]
    there = [list(each.ids) for each in held._kept]
    best = max((common_beginning(prompt[:-1], ids) for ids in there), default=0)
    whole = max((len(ids) for ids in there if ids == prompt[: len(ids)] and len(ids) < len(prompt)), default=0)
    expected = best if cut else whole
    tokens, row = held.take(prompt, spare)
    if expected < LEAST:
        assert (tokens, row) == (0, None)
    else:
        assert row is not None and tokens == expected
        assert row.ids == prompt[:tokens]
        assert all(each.row is not row for each in held._kept)
    assert held.columns <= spare


def test_the_least_recently_used_goes_first() -> None:
    held = KeptBeginnings[Row](cut=True)
    for first in range(3):
        held.add([first] * 64, Row([first] * 64))
    held.take([0] * 30 + [7], 10_000)
    held.shrink(2 * columns(64))
    assert [int(each.ids[0]) for each in held._kept] == [2, 0]


def test_a_conversation_that_goes_on_is_kept_once() -> None:
    held = KeptBeginnings[Row](cut=True)
    held.add([1] * 40, Row([1] * 40))
    held.add([1] * 80, Row([1] * 80))
    assert len(held) == 1 and held.columns == columns(80)
    states = KeptBeginnings[Row](cut=False)
    states.add([1] * 40, Row([1] * 40))
    states.add([1] * 80, Row([1] * 80))
    assert len(states) == 2  # the shorter one serves prompts that the longer one does not
