"""The tiers of a plan, made: empty, over the checkpoint's files; and what becomes of experts between two of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from moe_local.errors import MoeLocalError
from moe_local.experts.cache import ExpertCache
from moe_local.experts.misses import CPU, UPLOAD, MissPolicy, OnCpu
from moe_local.experts.mover import mover_to
from moe_local.experts.tier import Tier
from moe_local.memory.files import ReadAt
from moe_local.memory.pinned import host_slab
from moe_local.memory.records import RecordReader
from moe_local.memory.slab import Slab
from moe_local.planning.calibration import read_calibration
from moe_local.planning.machines import DRIVER
from moe_local.planning.placement import make_plan
from moe_local.planning.plan_load import LoadPlan
from moe_local.policies import POLICIES


def make_cache(
    load_plan: LoadPlan,
    reader: ReadAt,
    note: Callable[[str], None] = lambda text: None,
    *,
    host: Tier | None = None,
) -> ExpertCache:
    """The tiers of a plan, empty, over a reader of the checkpoint's files; `note` is told what a user should know.

    With a `host` tier from before where there is one, as it is.
    """
    plan, policy, accelerator = load_plan.plan, POLICIES.named(load_plan.options.policy), load_plan.accelerator
    slot, experts, mover = plan.needs.slot, plan.needs.experts, None
    slab = Slab(plan.device_experts + plan.device_spare, slot, load_plan.device)
    device = Tier.make(slab, experts, plan.device_slots, policy)
    if host is None and plan.host_slots is not None:
        below = host_slab(sum(plan.host_slots) + plan.host_spare, slot, accelerator, note)
        host = Tier.make(below, experts, plan.host_slots, policy)
    if host is not None:
        mover = mover_to(accelerator, host.slab, slab)
    reserve = (plan.device_spare if host is None else plan.host_spare) // 2
    capacity_for = plan.capacity if plan.capacities else None
    reading = RecordReader(reader)
    return ExpertCache(
        load_plan.catalog, reading, device, host, mover=mover, reserve=reserve, capacity_for=capacity_for
    )


def with_vram(load_plan: LoadPlan, vram: int) -> LoadPlan:
    """The plan with another budget for the device, in bytes.

    Raises BudgetError where not even one expert of each layer would fit, MoeLocalError where there is but one memory.
    """
    plan, options = load_plan.plan, replace(load_plan.options, vram=vram)
    if plan.vram is None or plan.host_slots is None:
        raise MoeLocalError("there is no memory of a device's own to resize", remedy="experts are in RAM: see --ram")
    if load_plan.accelerator.has_own_memory:
        held, (free, _) = load_plan.accelerator.held_memory() + DRIVER, load_plan.accelerator.memory()
        vram = min(vram, held + free)
    made = make_plan(
        plan.needs,
        ram=plan.ram,
        vram=vram,
        ram_overhead=plan.ram_overhead,
        vram_overhead=plan.vram_overhead,
        device_in_ram=plan.device_in_ram,
        device_share=options.experts,
        host_share=options.host_experts,
    )
    return replace(load_plan, options=options, plan=made)


def miss_policy(load_plan: LoadPlan) -> MissPolicy | None:
    """Who multiplies by experts that are in RAM and not on the device; None: they are uploaded."""
    asked, accelerator = load_plan.options.misses, load_plan.accelerator
    if load_plan.plan.host_slots is None or asked == UPLOAD:
        return None
    if asked == CPU:
        return OnCpu()
    if not accelerator.has_own_memory:
        return None
    found = read_calibration(accelerator.name, torch.get_num_threads())
    return None if found is None else found.costs(load_plan.plan.needs.slot)
