"""The tiers of a plan, made: empty, over the checkpoint's files; and what becomes of experts between two of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from moe_local.errors import BudgetError, MoeLocalError
from moe_local.experts.cache import ExpertCache
from moe_local.experts.misses import CPU, UPLOAD, ZERO_COPY, MissPolicy, OnCpu
from moe_local.experts.mover import mover_to
from moe_local.experts.tier import Tier
from moe_local.memory.files import ReadAt
from moe_local.memory.limits import memory_available, process_memory
from moe_local.memory.pages import free_caches
from moe_local.memory.pinned import host_slab
from moe_local.memory.records import RecordReader
from moe_local.memory.slab import Slab
from moe_local.planning.calibration import read_calibration
from moe_local.planning.machines import DRIVER
from moe_local.planning.placement import Plan, make_plan
from moe_local.planning.plan_load import ROUND, LoadPlan, rounded
from moe_local.policies import POLICIES
from moe_local.units import format_size


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
    return ExpertCache(
        load_plan.catalog,
        RecordReader(reader),
        device,
        host,
        mover=mover,
        reserve=reserve,
        uploads_ahead=uploads_ahead(load_plan),
        capacity_for=capacity_for,
    )


def with_budgets(load_plan: LoadPlan, ram: int | None = None, vram: int | None = None) -> LoadPlan:
    """The plan with another budget for RAM, for the device, or for both, in bytes; None leaves it as it is.

    Raises BudgetError where not even one expert of each layer would fit, or where there is less RAM than that, and
    MoeLocalError for a device's budget where there is but one memory.
    """
    plan, options, accelerator = load_plan.plan, load_plan.options, load_plan.accelerator
    if vram is not None and (plan.vram is None or plan.host_slots is None):
        raise MoeLocalError("there is no memory of a device's own to resize", remedy="experts are in RAM: see --ram")
    if vram is not None and accelerator.has_own_memory:
        held, (free, _) = accelerator.held_memory() + DRIVER, accelerator.memory()
        vram = min(vram, held + free)
    most = max(plan.ram, process_memory() + memory_available())
    if ram is not None and ram > most:
        raise BudgetError(
            f"{format_size(ram)} of RAM is more than this machine can give now, which is {format_size(most)}",
            minimum=most,
            remedy="end other programs, or give less",
        )
    made = _made(load_plan, plan.ram if ram is None else ram, plan.vram if vram is None else vram, plan.ram_overhead)
    options = replace(options, ram=made.ram if ram is not None else options.ram)
    options = replace(options, vram=made.vram if vram is not None else options.vram)
    return replace(load_plan, options=options, plan=made)


def settled(load_plan: LoadPlan) -> LoadPlan:
    """The plan once dense weights and the tokenizer are loaded: with fewer slots where they, and what came with them,
    have taken more RAM than was planned.

    Raises BudgetError where not even one expert of each layer would fit beside them.
    """
    plan, accelerator = load_plan.plan, load_plan.accelerator
    if accelerator.shares_ram:  # whose part of it the process's figure may have or not
        return load_plan
    free_caches(accelerator)
    taken = process_memory() + load_plan.options.beside - (plan.needs.dense if accelerator.is_cpu else 0)
    if (overhead := rounded(taken)) <= plan.ram_overhead:
        return load_plan
    return replace(load_plan, plan=_made(load_plan, plan.ram, plan.vram, overhead))


def _made(load_plan: LoadPlan, ram: int, vram: int | None, ram_overhead: int) -> Plan:
    """The same model's plan with other budgets, and another overhead of the process, in bytes."""
    plan, options = load_plan.plan, load_plan.options
    available = ram - ram_overhead if vram is None else vram - plan.vram_overhead
    return make_plan(
        plan.needs.with_long_passes(available, elastic=plan.elastic),
        ram=ram,
        vram=vram,
        ram_overhead=ram_overhead,
        vram_overhead=plan.vram_overhead,
        device_in_ram=plan.device_in_ram and plan.vram is not None,
        device_share=options.experts,
        host_share=options.host_experts,
        elastic=plan.elastic,
        slack=ROUND,
    )


def uploads_ahead(load_plan: LoadPlan) -> bool:
    """Whether experts go to the device before they are asked for: where copies go on beside compute, and nobody else
    multiplies by misses.
    """
    return load_plan.accelerator.has_own_memory and miss_policy(load_plan) is None


def miss_policy(load_plan: LoadPlan) -> MissPolicy | None:
    """Who multiplies by experts that are in RAM and not on the device; None: they are uploaded."""
    asked, accelerator = load_plan.options.misses, load_plan.accelerator
    if load_plan.plan.host_slots is None or asked in (UPLOAD, ZERO_COPY):
        return None
    if asked == CPU:
        return OnCpu()
    if not accelerator.has_own_memory:
        return None
    found = read_calibration(accelerator.name, torch.get_num_threads())
    return None if found is None else found.costs(load_plan.plan.needs.slot)
