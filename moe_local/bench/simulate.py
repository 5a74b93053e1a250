"""The inner loops of a replay, compiled by numba: residency as `memory/residency.py` decides it, key by key."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moe_local.errors import MoeLocalError
from moe_local.policies.base import Policy


class Accesses(NamedTuple):
    """What the layers of a model need, pass after pass."""

    ids: NDArray[Any]  # [tokens, layers, k]
    needed: NDArray[np.bool_]  # [tokens, layers, k]: what to look at
    signal: NDArray[np.float32]  # [tokens, layers, k]: when it is needed next, for a policy that knows
    steps: NDArray[np.int32]  # tokens of each forward pass
    experts: int


def simulate(accesses: Accesses, policy: Policy, capacities: NDArray[np.int64], *, shared: bool) -> NDArray[np.bool_]:
    """Which of the needed accesses miss: [tokens, layers, k], True at the first of an expert in a forward pass.

    `capacities` [layers] are each layer's; with `shared` all layers keep their sum between them.
    Raises MoeLocalError when numba is not installed.
    """
    run, *functions = _compiled(policy)
    missed = np.zeros(accesses.ids.shape, dtype=np.bool_)
    totals = np.array([capacities.sum()]) if shared else capacities
    layers, experts = accesses.ids.shape[1], accesses.experts
    spaces, keys = (1, layers * experts) if shared else (layers, experts)
    state = np.zeros((spaces, policy.state_rows(keys), keys))
    run(*functions, state, *accesses, totals, missed)
    return missed


def next_uses(accesses: Accesses) -> NDArray[np.float32]:
    """When the expert of each access is needed next: [tokens, layers, k], a count of layers from the beginning."""
    found = np.empty(accesses.ids.shape, dtype=np.float32)
    _jit()(_next_uses)(accesses.ids, accesses.needed, accesses.steps, accesses.experts, found)
    return found


def reuse_distances(accesses: Accesses) -> NDArray[np.int64]:
    """How many accesses of a token had each distance: [experts], how many others of the layer were needed since.

    First uses are left out.
    """
    counts = np.zeros(accesses.experts, dtype=np.int64)
    _jit()(_reuse_distances)(accesses.ids, accesses.experts, counts)
    return counts


@cache
def _jit() -> Callable[[Any], Any]:
    try:
        from numba import njit
    except ImportError as error:
        raise MoeLocalError(
            "replays are compiled by numba, which is not installed", remedy="pip install 'moe-local[bench]'"
        ) from error
    return cache(njit(nogil=True))


@cache
def _compiled(policy: Policy) -> tuple[Any, ...]:
    jit = _jit()
    return jit(_run), jit(policy.on_access), jit(policy.prepare), jit(policy.score)


def _run(
    use: Any,
    look: Any,
    worth: Any,
    states: Any,
    ids: Any,
    needed: Any,
    signal: Any,
    steps: Any,
    experts: int,
    capacities: Any,
    missed: Any,
) -> None:
    layers, k = ids.shape[1], ids.shape[2]
    shares, total = states.shape[0], states.shape[2]
    resident = np.zeros((shares, total), dtype=np.bool_)
    kept = np.zeros(shares, dtype=np.int64)
    now = np.zeros(shares, dtype=np.int64)
    strength = np.full(experts, -np.inf)  # the greatest signal of each expert in this pass
    first = np.zeros((experts, 2), dtype=np.int64)  # where it is needed first in this pass
    wanted = np.empty(experts, dtype=np.int64)
    signals = np.empty(experts)
    candidates = np.empty(total, dtype=np.int64)
    value = np.empty(total)
    start = 0
    for step in range(len(steps)):
        end = start + steps[step]
        for layer in range(layers):
            count = 0
            for token in range(start, end):
                for j in range(k):
                    expert = ids[token, layer, j]
                    if expert >= experts or not needed[token, layer, j]:
                        continue
                    if strength[expert] == -np.inf:
                        wanted[count] = expert
                        first[expert, 0], first[expert, 1] = token, j
                        count += 1
                    strength[expert] = max(strength[expert], signal[token, layer, j])
            if count == 0:
                continue
            if end - start > 1:
                wanted[:count].sort()
            share = layer if shares > 1 else 0
            offset = 0 if shares > 1 else layer * experts
            state, there = states[share], resident[share]
            now[share] += 1
            found = 0
            for i in range(count):
                expert = wanted[i]
                signals[i] = strength[expert]
                strength[expert] = -np.inf
                wanted[i] += offset
                if not there[offset + expert]:
                    missed[first[expert, 0], layer, first[expert, 1]] = True
                    candidates[found] = offset + expert
                    found += 1
            use(state, wanted[:count], now[share], signals[:count])
            if found == 0:
                continue
            misses = found
            excess = kept[share] + misses - capacities[share]
            if excess > 0:
                look(state, wanted[:count], now[share])
                for key in range(total):
                    if there[key]:
                        candidates[found] = key
                        found += 1
                for i in range(found):
                    value[i] = worth(state, candidates[i], now[share])
            for i in range(misses):
                there[candidates[i]] = True
            kept[share] += misses
            for _ in range(excess):
                least = 0
                for i in range(1, found):
                    if value[i] < value[least]:
                        least = i
                value[least] = np.inf
                there[candidates[least]] = False
                kept[share] -= 1
        start = end


def _next_uses(ids: Any, needed: Any, steps: Any, experts: int, found: Any) -> None:
    layers, k = ids.shape[1], ids.shape[2]
    upcoming = np.full((layers, experts), np.float32(3e38))
    end = ids.shape[0]
    for step in range(len(steps) - 1, -1, -1):
        start = end - steps[step]
        for layer in range(layers):
            for token in range(start, end):
                for j in range(k):
                    expert = ids[token, layer, j]
                    if expert < experts:
                        found[token, layer, j] = upcoming[layer, expert]
            for token in range(start, end):
                for j in range(k):
                    expert = ids[token, layer, j]
                    if expert < experts and needed[token, layer, j]:
                        upcoming[layer, expert] = step * layers + layer
        end = start


def _reuse_distances(ids: Any, experts: int, counts: Any) -> None:
    layers, k = ids.shape[1], ids.shape[2]
    order = np.empty(experts, dtype=np.int64)  # most recent first
    for layer in range(layers):
        known = 0
        for token in range(ids.shape[0]):
            for j in range(k):
                expert = ids[token, layer, j]
                if expert >= experts:
                    continue
                place = known
                for i in range(known):
                    if order[i] == expert:
                        place = i
                        break
                if place == known:
                    known += 1
                else:
                    counts[place] += 1
                for i in range(place, 0, -1):
                    order[i] = order[i - 1]
                order[0] = expert
