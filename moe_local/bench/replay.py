"""Replay of a trace: what every policy would have hit, in any tier, and Belady's optimum above them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from moe_local.bench.routing_stats import accesses_of
from moe_local.bench.simulate import Accesses, next_uses, simulate
from moe_local.bench.trace import Trace
from moe_local.errors import MoeLocalError
from moe_local.memory.limits import cores
from moe_local.policies import POLICIES
from moe_local.policies.base import Policy
from moe_local.policies.belady import BELADY
from moe_local.registry import choice

SCOPES = ("layer", "global")
EVERY = "all"


@dataclass(frozen=True)
class Decoding:
    """The tokens that were a forward pass of their own, and what one of them missed in all layers on average."""

    tokens: int
    misses: float
    host_misses: float


@dataclass(frozen=True)
class Replay:
    """What one policy made of a trace with `slots` [layers] in the device tier, and in a host tier below it."""

    policy: str
    scope: str  # "layer": each layer has its slots; "global": all share their sum
    slots: tuple[int, ...]
    host_slots: tuple[int, ...] | None
    lookups: NDArray[np.int64]  # [layers]: experts needed
    misses: NDArray[np.int64]  # [layers]: and not in the device tier
    host_misses: NDArray[np.int64]  # [layers]: and not in the host tier either
    decode: Decoding

    @property
    def hit_rate(self) -> float:
        """Share of the needed experts that the device tier held, in [0, 1]."""
        return 1 - float(self.misses.sum() / max(1, self.lookups.sum()))

    @property
    def layer_hit_rates(self) -> NDArray[np.float64]:
        """The same of each layer, [layers]."""
        found: NDArray[np.float64] = 1 - self.misses / np.maximum(self.lookups, 1)
        return found


def choose(names: Sequence[str]) -> list[Policy]:
    """Policies by name, or `all`; Belady's optimum comes last, always. Raises MoeLocalError for unknown names."""
    known = {**POLICIES, BELADY.name: BELADY}
    chosen: dict[str, Policy] = {}
    for name in names:
        if name == EVERY:
            chosen |= POLICIES
        elif name not in known:
            raise MoeLocalError(f"there is no policy {name!r}", remedy=choice(name, [EVERY, *known], "choose of"))
        else:
            chosen[name] = known[name]
    chosen.pop(BELADY.name, None)
    return [*chosen.values(), BELADY]


def capacity_slots(trace: Trace, share: float) -> tuple[int, ...]:
    """SlotTable of each layer at a share of its experts. Raises MoeLocalError below what one token needs."""
    slots = round(trace.experts * share)
    needed = min(trace.top_k, trace.experts)
    if slots < needed:
        raise MoeLocalError(
            f"a capacity of {share:.3g} is {slots} of {trace.experts} experts and one token needs {needed}",
            remedy=f"give at least {needed / trace.experts:.1%}",
        )
    return (slots,) * trace.layers


def possible(trace: Trace, shares: Sequence[float]) -> tuple[list[tuple[float, tuple[int, ...]]], dict[float, str]]:
    """The capacities that hold what one token needs, with their slots, and why the others cannot be."""
    kept: list[tuple[float, tuple[int, ...]]] = []
    left_out: dict[float, str] = {}
    for share in shares:
        try:
            kept.append((share, capacity_slots(trace, share)))
        except MoeLocalError as error:
            left_out[share] = error.message
    return kept, left_out


def replay(
    trace: Trace,
    policies: Sequence[Policy],
    capacities: Sequence[tuple[int, ...]],
    *,
    scopes: Sequence[str] = SCOPES[:1],
    host_slots: tuple[int, ...] | None = None,
    report: Callable[[str, float], None] = lambda stage, fraction: None,
) -> list[Replay]:
    """Every policy at every capacity (slots of each layer) and scope, on all cores.

    A host tier of `host_slots` sees what the device tier misses, under the same policy.
    """
    accesses = accesses_of(trace)
    future = accesses._replace(signal=next_uses(accesses))
    lookups = count_lookups(accesses)
    jobs = [
        partial(_one, future if policy is BELADY else accesses, policy, scope, slots, host_slots, lookups)
        for scope in scopes
        for slots in capacities
        for policy in policies
        if scope == SCOPES[0] or not policy.per_layer_only
    ]
    found = []
    with ThreadPoolExecutor(cores()) as pool:
        for number, result in enumerate(_in_order(pool, jobs), start=1):
            report(f"replaying {result.policy}", number / len(jobs))
            found.append(result)
    return found


def _in_order(pool: ThreadPoolExecutor, jobs: Sequence[Callable[[], Replay]]) -> Iterator[Replay]:
    jobs[0]()  # compiles before the threads do
    try:
        yield from pool.map(lambda job: job(), jobs)
    except BaseException:
        pool.shutdown(cancel_futures=True)
        raise


def _one(
    accesses: Accesses,
    policy: Policy,
    scope: str,
    slots: tuple[int, ...],
    host_slots: tuple[int, ...] | None,
    lookups: NDArray[np.int64],
) -> Replay:
    shared = scope == "global"
    missed = simulate(accesses, policy, np.array(slots), shared=shared)
    host_missed = missed
    if host_slots is not None:
        below = accesses._replace(needed=missed)
        if policy is BELADY:
            below = below._replace(signal=next_uses(below))
        host_missed = simulate(below, policy, np.array(host_slots), shared=shared)
    misses, host_misses = (of.sum(axis=(0, 2)) for of in (missed, host_missed))
    alone = np.repeat(accesses.steps == 1, accesses.steps)  # [tokens]
    tokens = int(alone.sum())
    each = [float(of[alone].sum() / max(1, tokens)) for of in (missed, host_missed)]
    return Replay(policy.name, scope, slots, host_slots, lookups, misses, host_misses, Decoding(tokens, *each))


def count_lookups(accesses: Accesses) -> NDArray[np.int64]:
    """Distinct experts that each layer needs, over all forward passes: [layers]."""
    nothing = np.zeros(accesses.ids.shape[1], dtype=np.int64)
    found: NDArray[np.int64] = simulate(accesses, POLICIES["lru"], nothing, shared=False).sum(axis=(0, 2))
    return found  # with no slots, all miss
