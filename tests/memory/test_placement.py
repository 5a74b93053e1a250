"""The plan's arithmetic."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_local.config import MIB
from moe_local.errors import BudgetError
from moe_local.memory.placement import Needs, Plan, capped, make_plan, share_out, spare_slots

LAYERS = st.lists(st.integers(1, 40), min_size=1, max_size=12)
NEEDS = Needs(dense=1000, kv_one=200, workspace=100, slot=10, experts=(8, 8, 8, 8), top_k=(2, 2, 2, 2))


@given(st.integers(0, 300), LAYERS)
def test_slots_are_dealt_evenly(slots: int, most: list[int]) -> None:
    given_ = share_out(slots, most)
    assert sum(given_) == min(slots, sum(most))
    assert all(0 <= have <= top for have, top in zip(given_, most, strict=True))
    unfilled = [have for have, top in zip(given_, most, strict=True) if have < top]
    assert not unfilled or max(given_) - min(unfilled) <= 1


@given(LAYERS, st.floats(0.001, 1))
def test_a_share_keeps_at_least_one(experts: list[int], share: float) -> None:
    assert all(1 <= kept <= count for kept, count in zip(capped(experts, share), experts, strict=True))


def test_by_hand() -> None:
    plan = make_plan(NEEDS, ram=2000, ram_overhead=500)
    assert (plan.device_slots, plan.device_spare) == ((1, 1, 1, 1), 16)  # 2000 - 500 - 1300 = 200 bytes, 20 slots
    assert plan.ram_used == 2000
    assert plan.useful_minimum == 500 + 1300 + (8 + 16) * 10
    assert plan.too_small_to_cache
    plan = make_plan(NEEDS, ram=2050, ram_overhead=500)
    assert (plan.device_slots, plan.device_spare) == ((3, 2, 2, 2), 16)
    assert not plan.too_small_to_cache


def test_what_fits_needs_no_spare_slots() -> None:
    plan = make_plan(NEEDS, ram=1620)
    assert (plan.device_slots, plan.device_spare) == (NEEDS.experts, 0)


def test_spare_slots_by_hand() -> None:
    sizes = (10, 2 * MIB, 3 * MIB, 100 * MIB)
    assert [spare_slots(replace(NEEDS, slot=size)) for size in sizes] == [16, 16, 11, 2]
    assert [spare_slots(replace(NEEDS, slot=size, sequences=8)) for size in sizes] == [48, 48, 32, 2]


def test_three_tiers_by_hand() -> None:
    plan = make_plan(NEEDS, ram=900, vram=1560, ram_overhead=500, vram_overhead=20)
    assert (plan.device_slots, plan.device_spare) == ((2, 2, 2, 2), 16)
    assert (plan.host_slots, plan.host_spare) == ((8, 8, 8, 8), 0)
    assert plan.vram_used == 20 + 1300 + 240
    assert plan.ram_used == 500 + 320


@given(st.integers(0, 4000), st.integers(0, 2000), st.one_of(st.none(), st.integers(0, 4000)))
def test_a_plan_holds_its_budgets_or_is_refused_with_one_that_works(
    ram: int, overhead: int, vram: int | None
) -> None:
    def attempt(ram: int, vram: int | None) -> Plan:
        return make_plan(NEEDS, ram=ram, vram=vram, ram_overhead=overhead)

    try:
        plan = attempt(ram, vram)
    except BudgetError as error:
        on_device = "device memory" in error.message
        if on_device:
            assert vram is not None and vram < error.minimum
            vram = error.minimum
        else:
            assert ram < error.minimum
            ram = error.minimum
        try:
            plan = attempt(ram, vram)
        except BudgetError as second:  # the other budget is too small as well
            plan = attempt(second.minimum, vram)
    assert plan.ram_used <= max(ram, plan.ram)
    assert plan.vram_used is None or plan.vram_used <= vram
    assert min(plan.device_slots) >= 1


def test_the_refusal_names_figures_and_remedy() -> None:
    with pytest.raises(BudgetError, match=r"too small.*--ram \d+MiB") as caught:
        make_plan(NEEDS, ram=10)
    assert caught.value.minimum == 1350
