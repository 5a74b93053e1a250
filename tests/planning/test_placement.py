"""The plan's arithmetic."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_local.errors import BudgetError
from moe_local.experts.capacity import TierCapacity
from moe_local.planning.needs import Needs
from moe_local.planning.placement import Plan, capped, make_plan, share_out, spare_slots
from moe_local.units import MIB

LAYERS = st.lists(st.integers(1, 40), min_size=1, max_size=12)
NEEDS = Needs(dense=1000, kv_bytes=200, workspace=100, slot=10, experts=(8, 8, 8, 8), top_k=(2, 2, 2, 2))


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


def test_a_token_s_pass_leaves_room_by_hand() -> None:
    """A token's pass takes 90 bytes less than the longest, one of 8 tokens 40: nine slots, and four."""
    needs = replace(NEEDS, workspaces=((1, 10), (8, 60)))
    plan = make_plan(needs, ram=2000, ram_overhead=500, elastic=True)
    assert (plan.device_slots, plan.device_spare) == ((4, 3, 3, 3), 16)
    assert plan.capacity(1) == TierCapacity((4, 3, 3, 3), 16)
    assert plan.capacity(2) == plan.capacity(8) == TierCapacity((2, 2, 2, 2), 16)
    assert plan.capacity(9) == plan.capacity(512) == TierCapacity((1, 1, 1, 1), 16)
    assert plan.ram_used == 2000
    assert plan.useful_minimum == 500 + 1300 - 90 + (8 + 16) * 10
    assert not plan.too_small_to_cache
    assert make_plan(needs, ram=2000, ram_overhead=500).capacity(1) == TierCapacity((1, 1, 1, 1), 16)
    together = make_plan(replace(needs, sequences=4), ram=2000, ram_overhead=500, elastic=True)
    assert together.device_slots == together.capacity(4).kept == together.capacity(1).kept


@given(st.integers(1350, 4000), st.lists(st.integers(0, 100), max_size=4), st.sampled_from([0.01, 0.5, 1.0]))
def test_no_pass_is_over_the_budget(ram: int, sizes: list[int], share: float) -> None:
    needs = replace(NEEDS, workspaces=tuple((4**n, size) for n, size in enumerate(sorted(sizes))))
    plan = make_plan(needs, ram=ram, device_share=share, elastic=True)
    assert plan.ram_used <= ram
    assert plan.too_small_to_cache == (ram < plan.useful_minimum) or share < 1
    before = plan.capacity(1)
    assert before.kept == plan.device_slots
    for tokens in (1, 3, 4, 20, 200, 5000):
        room = plan.capacity(tokens)
        assert needs.resident_bytes - needs.workspace + needs.workspace_of(tokens) + room.slots * needs.slot <= ram
        assert all(fewer <= more for fewer, more in zip(room.kept, before.kept, strict=True))
        assert room.slots <= before.slots and min(room.kept) >= 1
        before = room


def test_the_refusal_names_figures_and_remedy() -> None:
    with pytest.raises(BudgetError, match=r"too small.*--ram \d+MiB") as caught:
        make_plan(NEEDS, ram=10)
    assert caught.value.minimum == 1350
