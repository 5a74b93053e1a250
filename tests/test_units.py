"""Sizes, budgets and shares, as people write them; and what is suggested for a name that is none."""

from __future__ import annotations

import pytest

from moe_local.errors import MoeLocalError
from moe_local.policies import POLICIES
from moe_local.registry import choice, closest
from moe_local.units import GIB, parse_budget, parse_share, parse_size


@pytest.mark.parametrize("text", ["16G", "16g", "16Gi", "16GiB", "16 gib", str(16 * GIB), "16777216k"])
def test_sixteen_gib(text: str) -> None:
    assert parse_size(text) == 16 * GIB


def test_other_sizes() -> None:
    assert (parse_size("16GB"), parse_size("0"), parse_size("1048576")) == (16 * 10**9, 0, 1 << 20)
    assert parse_size("1.5Ti") == 3 << 39


@pytest.mark.parametrize(
    ("text", "said"),
    [("32", "did you mean 32GiB?"), ("0.5", "did you mean 0.5GiB?"), ("lots", "not a size"), ("5%", "not a size")],
)
def test_no_sizes(text: str, said: str) -> None:
    with pytest.raises(MoeLocalError) as caught:
        parse_size(text)
    assert said in str(caught.value)


def test_budgets() -> None:
    assert parse_budget("25%", lambda: 8 * GIB) == 2 * GIB
    assert parse_budget(" 100% ", lambda: 8 * GIB) == 8 * GIB
    assert parse_budget("1GiB", lambda: pytest.fail("nobody asked")) == GIB
    for text in ("0%", "101%", "%", "x%"):
        with pytest.raises(MoeLocalError, match="of memory"):
            parse_budget(text, lambda: GIB)


def test_shares() -> None:
    assert parse_share("50%") == parse_share("0.5") == 0.5
    with pytest.raises(MoeLocalError, match="did you mean 50%"):
        parse_share("50")
    with pytest.raises(MoeLocalError, match="share of the experts"):
        parse_share("200%")


def test_names_that_are_close() -> None:
    assert closest("LFRU", ["lru", "lfru", "successor"])[0] == "lfru"
    assert closest("zebra", ["lru", "lfru"]) == []
    assert choice("sucessor", POLICIES) == "did you mean successor? use lru, lfu, lfru, successor"
    assert choice("zebra", ["a", "b"], "choose one of") == "choose one of a, b"
    with pytest.raises(MoeLocalError, match=r"there is no policy 'lrfu'; did you mean l\w+\? choose one of lru, "):
        POLICIES.assert_named("lrfu")
