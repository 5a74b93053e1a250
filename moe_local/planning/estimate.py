"""What a model would do on a machine nobody has bought yet: arithmetic on sizes and bandwidths, nothing measured.

A token reads the dense part, the KV cache and its experts from the device tier's memory. Experts that are not there
come from RAM over PCIe, and those that RAM has not come from the disk first. How often, a locality curve says.

On a GPU the host waits once a layer for the router's choice, and at worst, without recordings, launches each of a
layer's kernels. With Triton's kernels weights are read once, as they are held; without them they are decoded at every
use.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from moe_local.errors import BudgetError, MoeLocalError
from moe_local.planning.locality import Locality
from moe_local.planning.machines import DRIVER, SYSTEM, Machine
from moe_local.planning.needs import Needs
from moe_local.planning.placement import Plan, make_plan
from moe_local.planning.sizes import ModelSizes
from moe_local.planning.weights import Formats, computed_bytes, decoding_traffic, needs_of
from moe_local.units import format_size

REACHED = 0.6  # of a memory's rated bandwidth: our 4-bit kernel reads 25 GB/s of RAM that gives 40
PER_LAYER = 0.4e-3  # seconds of transformers' Python for a layer and token, measured on one slow core
# Seconds of reading a router's choice back from a GPU, at best and at worst: others' figures, not measured here.
ROUTER_WAIT = 0.2e-3, 0.35e-3
LAUNCH = 1e-3 / 210  # seconds of the host's for a kernel or a small copy: reckoned, not measured
# Launches of a layer, counted on the pretend device; of the three of Triton's kernels and a copy, all but the sum
# are repeated for experts that come later; decoding one expert's two matrices is 20.
LAYER_LAUNCHES, PUT_LAUNCHES, DECODING_LAUNCHES = 51, 3, 20
HOST = "host"  # what bounds a token that no link does
_ANY = 1 << 200  # bytes: a budget that is not in question


@dataclass(frozen=True)
class Estimate:
    """One model on one machine, decoding in the steady state: bytes and seconds are of one token."""

    machine: Machine
    plan: Plan
    device_hits: float  # of all requests for experts
    host_hits: float | None  # of those that the device misses; None without a host tier
    bytes: Mapping[str, float]  # over each link: vram or ram, pcie, disk
    seconds: Mapping[str, float]  # of each link alone, at its full bandwidth
    host_seconds: tuple[float, float]  # that nothing can overlap, at best, and that it takes at worst
    kernels: bool  # whether weights are read as they are held, on a GPU by Triton's kernels

    @property
    def device_share(self) -> float:
        return self.plan.share

    @property
    def host_share(self) -> float | None:
        """The share of all experts in RAM, copies of those on the device among them; None without a host tier."""
        slots = self.plan.host_slots
        return None if slots is None else sum(slots) / self.plan.needs.all_experts

    @property
    def memory_share(self) -> float:
        """The share of experts that are not on the disk alone."""
        return max(self.device_share, self.host_share or 0.0)

    @property
    def tokens_per_second(self) -> tuple[float, float]:
        """From low to high. Low: nothing overlaps, memory gives `REACHED` of its bandwidth, and the host takes its
        time. High: all overlaps, and the slowest link alone decides, or on a GPU the waits for the routers.
        """
        return speed_range(self.seconds, self.machine.device_memory, self.host_seconds)

    @property
    def bound_by(self) -> str:
        """The link that takes the most seconds a token, or `HOST` where waiting for the routers takes more."""
        seconds = {**self.seconds, HOST: self.host_seconds[0]}
        return max(seconds, key=lambda link: seconds[link])

    @property
    def load_seconds(self) -> float:
        """Seconds of reading the dense part, after which the first prompt can be taken."""
        return self.plan.needs.dense / (self.machine.disk_bandwidth * 1e9)

    @property
    def warm_seconds(self) -> float:
        """Seconds of reading as many experts as memory holds, which happens as they are asked for."""
        held = self.memory_share * self.plan.needs.all_experts * self.plan.needs.slot
        return held / (self.machine.disk_bandwidth * 1e9)


def speed_range(seconds: Mapping[str, float], memory: str, host: tuple[float, float]) -> tuple[float, float]:
    """Tokens/s from the seconds of each link, `memory` being the device tier's, and of the host; see `Estimate`."""
    least, most = host
    slow = sum(seconds.values()) + seconds[memory] * (1 / REACHED - 1) + most
    return 1 / slow, 1 / max(least, *seconds.values())


def host_seconds(sizes: ModelSizes, machine: Machine, misses: float, *, kernels: bool = True) -> tuple[float, float]:
    """Seconds a token that no link takes: those that nothing can overlap, at best, and all of them at worst.

    `misses` of a token's experts are not on the device: at worst each comes alone. On a CPU nothing is waited for.
    """
    python, routers = sizes.layers * PER_LAYER, len(sizes.experts)
    if machine.vram is None:
        return 0.0, python
    launches = sizes.layers * LAYER_LAUNCHES + PUT_LAUNCHES * misses
    if not kernels:
        launches += DECODING_LAUNCHES * sizes.token_set
    best, worst = ROUTER_WAIT
    return routers * best, python + routers * worst + launches * LAUNCH


def estimate(
    sizes: ModelSizes,
    machine: Machine,
    formats: Formats,
    context: int,
    locality: Locality,
    *,
    kernels: bool = True,
) -> Estimate:
    """What a model does on a machine at `context` tokens, its experts used as unevenly as `locality` says.

    On a GPU without `kernels`, Triton's, what is encoded is decoded at every use. What fits is reckoned with the room
    that this takes either way.

    Raises BudgetError when the dense part and one token's experts do not fit the device tier, MoeLocalError for a
    context that the model does not have.
    """
    _check_context(sizes, context)
    needs = needs_of(sizes, formats, context, gpu=machine.vram is not None)
    if machine.vram is None:
        needs = needs.with_embeddings_on_disk(machine.ram - SYSTEM)
    plan = _place(needs, machine)
    needs = plan.needs
    host_share = None if plan.host_slots is None else sum(plan.host_slots) / needs.all_experts
    device_hits = locality.hit_rate(plan.share)
    held_hits = max(device_hits, locality.hit_rate(host_share or 0.0))  # in either memory
    kernels = kernels or machine.vram is None
    computed = computed_bytes if kernels else decoding_traffic
    misses = (1 - device_hits) * needs.token_set
    carried = {
        machine.device_memory: float(computed(sizes, formats, needs)),
        "pcie": misses * needs.slot,  # what the disk gave goes on over it
        "disk": (1 - held_hits) * needs.token_set * needs.slot,
    }
    if machine.vram is None:
        del carried["pcie"]
    return Estimate(
        machine=machine,
        plan=plan,
        device_hits=device_hits,
        host_hits=None if host_share is None else _among(held_hits, device_hits),
        bytes=carried,
        seconds={link: amount / (machine.bandwidth(link) * 1e9) for link, amount in carried.items()},
        host_seconds=host_seconds(sizes, machine, misses, kernels=kernels),
        kernels=kernels,
    )


def _check_context(sizes: ModelSizes, context: int) -> None:
    if context < 1:
        raise MoeLocalError(f"--context {context} is not a number of tokens")
    if sizes.positions is not None and context > sizes.positions:
        raise MoeLocalError(f"--context {context} is more than this model's {sizes.positions} positions")


def _among(held: float, device: float) -> float:
    """P(in RAM | not on the device), where RAM has what the device has: 1 if nothing misses."""
    return (held - device) / (1 - device) if device < 1 else 1.0


def _place(needs: Needs, machine: Machine) -> Plan:
    """The plan on a machine. Raises BudgetError naming the smallest budget that keeps one token's experts."""
    least = _least(needs, machine)
    budget, what, option = (machine.ram, "RAM", "--ram") if machine.vram is None else (machine.vram, "VRAM", "--vram")
    if budget < least:
        raise BudgetError(
            f"{machine.name}: {format_size(budget)} of {what} is too small: the dense weights need"
            f" {format_size(needs.dense)}, the KV cache {format_size(needs.kv_cache)}, activations"
            f" {format_size(needs.workspace)}, one token's {needs.token_set} experts"
            f" {format_size(needs.token_set * needs.slot)}",
            minimum=least,
            remedy=f"at least {option} {-(-least >> 20)}MiB would do, or a smaller --format or --context",
        )
    return _plan(needs, machine.ram, machine.vram)


def _least(needs: Needs, machine: Machine) -> int:
    """The smallest budget of the device tier that keeps one token's experts."""
    overhead = SYSTEM if machine.vram is None else DRIVER
    return _plan_device(
        needs, overhead + needs.resident_bytes + needs.all_experts * needs.slot, machine
    ).useful_minimum


def _plan_device(needs: Needs, budget: int, machine: Machine) -> Plan:
    return _plan(needs, budget, None) if machine.vram is None else _plan(needs, _ANY, budget)


def _plan(needs: Needs, ram: int, vram: int | None) -> Plan:
    in_ram = vram is None
    needs = needs.with_long_passes(ram - SYSTEM if vram is None else vram - DRIVER, elastic=in_ram)
    return make_plan(
        needs, ram=ram, vram=vram, ram_overhead=SYSTEM, vram_overhead=0 if in_ram else DRIVER, elastic=in_ram
    )


def doubled(machine: Machine) -> dict[str, Machine]:
    """The machine with twice as much of one memory, by its name."""
    more = {"ram": replace(machine, ram=2 * machine.ram)}
    return more if machine.vram is None else {"vram": replace(machine, vram=2 * machine.vram), **more}
