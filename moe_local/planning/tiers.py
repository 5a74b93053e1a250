"""The tiers of a plan, made: empty, over the checkpoint's files; and what becomes of experts between two of them."""

from __future__ import annotations

from collections.abc import Callable

import torch

from moe_local.experts.cache import ExpertCache
from moe_local.experts.misses import CPU, UPLOAD, MissPolicy, OnCpu
from moe_local.experts.mover import mover_to
from moe_local.experts.tier import Tier
from moe_local.memory.files import ReadAt
from moe_local.memory.pinned import host_slab
from moe_local.memory.records import RecordReader
from moe_local.memory.slab import Slab
from moe_local.planning.calibration import read_calibration
from moe_local.planning.plan_load import LoadPlan
from moe_local.policies import POLICIES


def make_cache(load_plan: LoadPlan, reader: ReadAt, note: Callable[[str], None] = lambda text: None) -> ExpertCache:
    """The tiers of a plan, empty, over a reader of the checkpoint's files; `note` is told what a user should know."""
    plan, policy, accelerator = load_plan.plan, POLICIES.named(load_plan.options.policy), load_plan.accelerator
    slot, experts = plan.needs.slot, plan.needs.experts
    slab = Slab(plan.device_experts + plan.device_spare, slot, load_plan.device)
    device, host, mover = Tier.make(slab, experts, plan.device_slots, policy), None, None
    if plan.host_slots is not None:
        below = host_slab(sum(plan.host_slots) + plan.host_spare, slot, accelerator, note)
        host, mover = Tier.make(below, experts, plan.host_slots, policy), mover_to(accelerator, below, slab)
    reserve = (plan.device_spare if host is None else plan.host_spare) // 2
    capacity_for = plan.capacity if plan.capacities else None
    reading = RecordReader(reader)
    return ExpertCache(
        load_plan.catalog, reading, device, host, mover=mover, reserve=reserve, capacity_for=capacity_for
    )


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
