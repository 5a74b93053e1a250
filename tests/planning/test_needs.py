"""How long the passes of a prompt are."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from moe_local.planning.needs import Needs

LENGTHS = (1, 32, 128, 512, 1024, 2048, 4096)


def _needs(sizes: list[int]) -> Needs:
    passes = tuple(zip(LENGTHS, sorted(sizes), strict=False))
    return Needs.of_passes(passes, dense=1000, kv_bytes=200, slot=10, experts=(8, 8), top_k=(2, 2))


sizes = st.lists(st.integers(0, 5000), min_size=1, max_size=len(LENGTHS))


@given(sizes, st.integers(0, 40_000), st.booleans())
def test_the_longest_that_costs_experts_no_more_than_their_share(
    sizes: list[int], available: int, elastic: bool
) -> None:
    short = _needs(sizes)
    found = short.with_long_passes(available, elastic=elastic)
    known = dict(zip(LENGTHS, sorted(sizes), strict=False))
    assert short.chunk == max(tokens for tokens in known if tokens <= 512)
    left = max(0, available - short.resident_bytes)
    costs = {tokens: size - short.workspace for tokens, size in known.items() if tokens > short.chunk}
    most = min(left // (2 if elastic else 32), left - short.least_slots_bytes)
    allowed = [tokens for tokens, cost in costs.items() if cost <= most]
    assert found.chunk in (max([short.chunk, *allowed]), short.chunk)
    if available >= short.resident_bytes:
        assert found.chunk == max([short.chunk, *allowed])
    assert found.workspace == known[found.chunk]
    assert found.with_short_passes() == short
    assert found.with_long_passes(available, elastic=elastic) == found


@given(sizes)
def test_every_pass_has_its_workspace(sizes: list[int]) -> None:
    known = dict(zip(LENGTHS, sorted(sizes), strict=False))
    longest = _needs(sizes).with_long_passes(1 << 40, elastic=True)
    assert (longest.chunk, longest.longer) == (max(known), ())
    assert {tokens: longest.workspace_of(tokens) for tokens in known} == known
    assert longest.workspace_of(1 << 30) == longest.workspace
