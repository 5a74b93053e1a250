"""What many replies of a server took together."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from moe_local.bench.serving import QUANTILES, Reply, figures, quantiles

times = st.floats(0, 1000, allow_nan=False)


@given(st.lists(times | st.just(math.nan), min_size=1))
def test_quantiles_are_times_that_were_measured(values: list[float]) -> None:
    known = [round(value, 4) for value in values if not math.isnan(value)]
    found = list(quantiles(values).values())
    if not known:
        assert found == [None] * len(QUANTILES)
        return
    middle, *_, last = (each for each in found if each is not None)
    assert set(found) <= set(known) and found == sorted(found, key=lambda each: each or 0.0)
    assert sum(each <= middle for each in known) >= len(known) / 2
    assert sum(each > last for each in known) <= len(known) / 100


def test_what_failed_counts_for_nothing_but_failures() -> None:
    replies = [Reply(1.0, 3.0, 5, 10, 4), Reply(error="429"), Reply(2.0, 2.0, 1, 10), Reply(error="429")]
    found = figures(replies, 4.0, 2)
    assert (found["requests"], found["failed"], found["errors"]) == (4, 2, ["429"])
    assert (found["tokens"], found["tokens_per_second"], found["requests_per_second"]) == (6, 1.5, 0.5)
    assert (found["prompt_tokens"], found["cached_tokens"]) == (20, 4)
    assert found["time_to_first_token"] == {"p50": 1.0, "p95": 2.0, "p99": 2.0}
    assert found["time_between_tokens"] == {"p50": 0.5, "p95": 0.5, "p99": 0.5}  # of the answer with more than one
    assert found["time_of_answer"] == {"p50": 2.0, "p95": 3.0, "p99": 3.0}
