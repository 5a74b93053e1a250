"""Time is shared by how many wait for their first token and for their next."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from moe_local.generation.batch.sharing import TimeShares

SECONDS = st.floats(0.01, 10)


@given(st.integers(1, 40), st.integers(1, 40), st.lists(st.tuples(SECONDS, SECONDS), min_size=20, max_size=200))
def test_reading_has_half_of_the_time_or_the_share_of_those_who_wait_for_it(
    reading: int, running: int, passes: list[tuple[float, float]]
) -> None:
    shares = TimeShares()
    read, decoded = 0.0, 0.0
    for seconds_of_reading, seconds_of_decoding in passes:
        if shares.may_read:
            shares.read(seconds_of_reading)
            read += seconds_of_reading
        shares.decoded(seconds_of_decoding, running, reading)
        decoded += seconds_of_decoding
    share = max(0.5, reading / (reading + running))
    assert read <= share * (read + decoded) + 10 + 1e-6


@given(SECONDS, st.integers(1, 40))
def test_many_who_come_do_not_wait_for_what_was_owed_to_many_who_ran(seconds: float, many: int) -> None:
    shares = TimeShares()
    shares.read(seconds)
    assert not shares.may_read
    shares.decoded(seconds / many * 1.001, 1, many)
    assert shares.may_read


@given(SECONDS)
def test_where_nobody_decodes_nothing_is_owed(seconds: float) -> None:
    shares = TimeShares()
    shares.read(seconds)
    shares.nobody_decodes()
    assert shares.may_read
