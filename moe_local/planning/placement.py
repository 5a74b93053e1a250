"""From budgets to a plan: what goes into which tier, before anything is loaded. Arithmetic only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from moe_local.errors import BudgetError
from moe_local.experts.capacity import TierCapacity
from moe_local.planning.needs import Needs
from moe_local.units import MIB, format_size

_LONGEST = 1 << 60  # tokens
_IN_FLIGHT, _MANY_IN_FLIGHT = 32 * MIB, 96 * MIB  # for one sequence, and for a batch, which needs nearly all experts


@dataclass(frozen=True)
class Plan:
    """Slots of each layer in each tier, and the arithmetic behind them (bytes).

    With one memory (a CPU alone) the device tier is RAM and there is no host tier. Long forward passes take more
    memory than a token: `capacities` (tokens, capacity) says what the tier has in passes of up to so many tokens, the
    last one also in longer ones. The slots are those of the first. No capacities: it is always the same.
    """

    needs: Needs
    ram: int  # budget for the whole process
    vram: int | None  # budget on the device, where it has memory of its own
    ram_overhead: int  # the process itself: interpreter, libraries
    vram_overhead: int  # the device's runtime
    device_slots: tuple[int, ...]  # experts kept of each layer
    host_slots: tuple[int, ...] | None
    device_in_ram: bool = False  # the device's memory is a part of RAM
    device_spare: int = 0  # slots for what passes through
    host_spare: int = 0
    elastic: bool = False  # what a long pass needs is the tier's in shorter ones
    capacities: tuple[tuple[int, TierCapacity], ...] = ()  # ascending

    def capacity(self, tokens: int) -> TierCapacity:
        """What the device tier holds in a forward pass of so many tokens."""
        capacities = self.capacities or ((tokens, TierCapacity(self.device_slots, self.device_spare)),)
        return next((capacity for most, capacity in capacities if tokens <= most), capacities[-1][1])

    @property
    def device_experts(self) -> int:
        return sum(self.device_slots)

    @property
    def left_on_disk(self) -> int:
        """Layers of whose experts no tier above the disk holds all."""
        below = self.host_slots or (0,) * len(self.device_slots)
        return sum(
            count not in held for count, *held in zip(self.needs.experts, self.device_slots, below, strict=True)
        )

    @property
    def share(self) -> float:
        """The share of all experts that the device tier holds."""
        return self.device_experts / self.needs.all_experts

    @property
    def device_bytes(self) -> int:
        """Bytes of the device tier's slots, less what they have only while no long pass needs it."""
        needs = self.needs
        return max(
            (
                capacity.slots * needs.slot - (needs.workspace - needs.workspace_of(tokens))
                for tokens, capacity in self.capacities
            ),
            default=(self.device_experts + self.device_spare) * needs.slot,
        )

    @property
    def below(self) -> tuple[tuple[int, ...] | None, int]:
        """What the host tier keeps of each layer, and its spare slots."""
        return self.host_slots, self.host_spare

    @property
    def host_bytes(self) -> int:
        """Bytes of the host tier's slots."""
        return (sum(self.host_slots or ()) + self.host_spare) * self.needs.slot

    @property
    def ram_used(self) -> int:
        """Bytes of RAM that the whole process takes at most; never more than `ram`."""
        on_host = self.ram_overhead + self.host_bytes
        return on_host + self.needs.resident_bytes + self.device_bytes if self.device_in_ram else on_host

    @property
    def vram_used(self) -> int | None:
        """Bytes of the device's memory that are taken at most; None where there is no budget for it."""
        return None if self.vram is None else self.vram_overhead + self.needs.resident_bytes + self.device_bytes

    @property
    def useful_minimum(self) -> int:
        """Bytes of the device tier's budget below which caching hurts: room for one token's experts."""
        needs = self.needs.with_short_passes()
        overhead = self.ram_overhead if self.vram is None else self.vram_overhead
        slots = min(needs.token_set + spare_slots(needs), needs.all_experts)
        saved = needs.workspace - needs.workspace_of(needs.sequences) if self.elastic else 0
        return overhead + needs.resident_bytes + max(slots * needs.slot - saved, needs.least_slots_bytes)

    @property
    def too_small_to_cache(self) -> bool:
        """Whether some layer keeps fewer experts than one token needs: each then evicts its own."""
        return any(
            slots < min(k, n)
            for slots, k, n in zip(self.device_slots, self.needs.top_k, self.needs.experts, strict=True)
        )


def make_plan(
    needs: Needs,
    *,
    ram: int,
    vram: int | None = None,
    ram_overhead: int = 0,
    vram_overhead: int = 0,
    device_in_ram: bool = False,
    device_share: float = 1.0,
    host_share: float = 1.0,
    elastic: bool = False,
    slack: int = 0,
) -> Plan:
    """Gives every byte of the budgets that is left to slots, at least one a layer and at most all the experts.

    Where not all fit, some more slots are spare: experts that a tier does not keep pass through them.

    `device_share` and `host_share` cap a tier at that share of each layer's experts, however much would fit.
    With `elastic` and one memory, the tier has what a token's forward pass leaves of the longest one's workspace, and
    gives it back for longer ones. With `device_in_ram` the device tier (where it has a budget of its own: all of it)
    is taken from `ram`.
    Raises BudgetError, with the smallest budgets that would do, when not even one slot a layer fits; they have
    `slack` bytes more, as the overhead is not the same from one run to the next.
    """
    if vram is None:
        return _in_one_memory(needs, ram, ram_overhead, device_share, slack, elastic=elastic)
    shares = (device_share, host_share)
    return _in_two_memories(needs, ram, vram, ram_overhead, vram_overhead, shares, slack, device_in_ram=device_in_ram)


def _in_one_memory(needs: Needs, ram: int, overhead: int, share: float, slack: int, *, elastic: bool) -> Plan:
    """Everything in RAM, which is the device tier. Arguments and errors as `make_plan`."""
    taken, least = overhead + needs.resident_bytes, needs.least_slots_bytes
    if ram < taken + least:
        raise _too_little(f"{format_size(ram)} of RAM", needs, {"--ram": taken + least + slack})
    steps = [tokens for tokens, _ in needs.workspaces if tokens >= needs.sequences] if elastic else []
    steps.append(_LONGEST)
    left = [ram - taken + needs.workspace - needs.workspace_of(tokens) for tokens in steps]
    capacities = [TierCapacity(*_tier(each, needs, share)) for each in left]
    return Plan(
        needs=needs,
        ram=ram,
        vram=None,
        ram_overhead=overhead,
        vram_overhead=0,
        device_slots=capacities[0].kept,
        host_slots=None,
        device_in_ram=True,
        device_spare=capacities[0].spare,
        elastic=elastic,
        capacities=tuple(zip(steps, capacities, strict=True)) if len(set(capacities)) > 1 else (),
    )


def _in_two_memories(
    needs: Needs,
    ram: int,
    vram: int,
    ram_overhead: int,
    vram_overhead: int,
    shares: tuple[float, float],
    slack: int,
    *,
    device_in_ram: bool,
) -> Plan:
    """The dense part on the device and experts in both. `shares` are of the device and of the host tier; the rest as
    `make_plan`.
    """
    taken, least = vram_overhead + needs.resident_bytes, needs.least_slots_bytes
    vram_wanted = vram if vram >= taken + least else taken + least + slack
    ram_taken = ram_overhead + (vram_wanted if device_in_ram else 0)
    wanted = {"--vram": vram_wanted} if vram < vram_wanted else {}
    if ram < ram_taken + least:
        wanted["--ram"] = ram_taken + least + slack
    if wanted:
        short = f"{format_size(vram)} of device memory" if "--vram" in wanted else f"{format_size(ram)} of RAM"
        raise _too_little(short, needs, wanted)
    device = _tier(vram - taken, needs, shares[0])
    host = _tier_below(ram - ram_taken, needs, shares[1], device[0])
    return Plan(
        needs=needs,
        ram=ram,
        vram=vram,
        ram_overhead=ram_overhead,
        vram_overhead=vram_overhead,
        device_slots=device[0],
        host_slots=host[0],
        device_in_ram=device_in_ram,
        device_spare=device[1],
        host_spare=host[1],
    )


def _tier(available: int, needs: Needs, share: float) -> tuple[tuple[int, ...], int]:
    """Slots of each layer, and spare ones, in `available` bytes."""
    slots, most = available // needs.slot, capped(needs.experts, share)
    if most == needs.experts and slots >= needs.all_experts:
        return most, 0
    spare = min(spare_slots(needs), slots - len(most))
    return share_out(slots - spare, most), spare


def _tier_below(available: int, needs: Needs, share: float, above: Sequence[int]) -> tuple[tuple[int, ...], int]:
    """As `_tier`, for the tier below one that keeps `above` of each layer: a layer that is there whole only passes
    through here.
    """
    most = capped(needs.experts, share)
    wanted = tuple(0 if kept == count else top for kept, count, top in zip(above, needs.experts, most, strict=True))
    slots = available // needs.slot
    if wanted == needs.experts and slots >= needs.all_experts:
        return wanted, 0
    spare = min(spare_slots(needs), slots if 0 in wanted else slots - len(wanted))
    return share_out(slots - spare, wanted), spare


def spare_slots(needs: Needs) -> int:
    """Slots that keep a disk busy: enough reads in flight, of enough bytes."""
    alone = needs.sequences == 1
    wanted = -(-(_IN_FLIGHT if alone else _MANY_IN_FLIGHT) // needs.slot)
    return min(max(2, wanted), 16 if alone else 48)


def _too_little(budget: str, needs: Needs, wanted: Mapping[str, int]) -> BudgetError:
    """`wanted` are the smallest budgets that would do, by option, the first for what is short."""
    options = " and ".join(f"{option} {-(-size >> 20)}MiB" for option, size in wanted.items())
    return BudgetError(
        f"a budget of {budget} is too small: the dense weights need {format_size(needs.dense)}, the KV cache"
        f" {format_size(needs.kv_cache)}, activations {format_size(needs.workspace)}, one expert of each of"
        f" {len(needs.experts)} layers and one more {format_size(needs.least_slots_bytes)}",
        minimum=next(iter(wanted.values())),
        remedy=f"give at least {options}, or shorten --context",
    )


def capped(experts: Sequence[int], share: float) -> tuple[int, ...]:
    """`share` of each layer's experts, rounded up."""
    return tuple(min(count, max(1, math.ceil(count * share - 1e-9))) for count in experts)


def share_out(slots: int, most: Sequence[int]) -> tuple[int, ...]:
    """Deals slots to layers as evenly as `most` (each layer's maximum) allows; all of them if they suffice.

    The sum is min(slots, sum(most)), and two layers that are not at their maximum differ by one slot at most.
    """
    given = [0] * len(most)
    left = min(slots, sum(most))
    while left:
        open_layers = [layer for layer, top in enumerate(most) if given[layer] < top]
        each = max(1, min(left // len(open_layers), min(most[layer] - given[layer] for layer in open_layers)))
        for layer in open_layers[:left]:
            given[layer] += each
            left -= each
    return tuple(given)
