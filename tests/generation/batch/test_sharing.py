"""Time is shared by how many wait for their first token and for their next."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from moe_local.generation.batch.sharing import TimeShares

SECONDS = st.floats(0.01, 10)
MANY = st.integers(1, 40)


@given(MANY, MANY, SECONDS, st.lists(SECONDS, min_size=20, max_size=200))
def test_reading_has_half_of_the_time_or_the_share_of_those_who_wait_for_it(
    reading: int, running: int, token: float, prompts: list[float]
) -> None:
    """A token takes the same each time, and reading is done along with one, which has its own part of the time."""
    shares = TimeShares()
    shares.passed(token, running, reading, read=False)
    read, decoded = 0.0, token
    for seconds in prompts:
        may = shares.may_read(running)
        shares.passed(token + seconds * may, running, reading, read=may)
        read, decoded = read + seconds * may, decoded + token
    share = max(0.5, reading / (reading + running))
    assert read <= share * (read + decoded) + 10 + 1e-6


@given(SECONDS, MANY)
def test_many_who_come_do_not_wait_for_what_was_owed_to_many_who_ran(seconds: float, many: int) -> None:
    shares = TimeShares()
    shares.passed(seconds, 0, many, read=True)
    assert not shares.may_read(1)
    shares.passed(seconds / many * 1.001, 1, many, read=False)
    assert shares.may_read(1)


@given(SECONDS)
def test_where_nobody_decodes_nothing_is_owed(seconds: float) -> None:
    shares = TimeShares()
    shares.passed(seconds, 3, 1, read=True)
    assert shares.may_read(0) and not shares.may_read(3)
    shares.passed(seconds, 0, 0, read=False)
    assert shares.may_read(3)


@given(SECONDS, SECONDS)
def test_what_a_token_takes_is_not_owed_to_those_who_had_it(token: float, prompt: float) -> None:
    shares = TimeShares()
    shares.passed(token, 1, 1, read=False)
    shares.passed(token + prompt, 1, 1, read=True)
    assert shares.may_read(1) == (prompt <= token + 1e-9) or abs(prompt - token) < 1e-6
