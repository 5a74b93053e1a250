"""The compiled loops against what runs in the model, against definitions, and against exhaustive search."""

from __future__ import annotations

import sys
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_local.bench.replay import choose, count_lookups, replay
from moe_local.bench.routing_stats import accesses_of
from moe_local.bench.simulate import _jit, next_uses, reuse_distances, simulate
from moe_local.bench.trace import Trace
from moe_local.errors import MoeLocalError
from moe_local.experts.residency import LayerResidency
from moe_local.policies import POLICIES
from moe_local.policies.belady import BELADY
from moe_local.policies.lru import LRU
from moe_local.testing.traces import small_traces

Needed = list[dict[int, float]]  # of one layer, pass by pass: expert -> the greatest weight that it is given


def _passes(trace: Trace, layer: int) -> Needed:
    """As the experts' forward pass asks: a single token's in its own order, several tokens' in ascending order."""
    found, start = [], 0
    for tokens in trace.steps:
        ids = trace.ids[start : start + tokens, layer].ravel()
        weights = trace.weights[start : start + tokens, layer].ravel()
        needed: dict[int, float] = {}
        for expert, weight in zip(ids.tolist(), weights.tolist(), strict=True):
            if expert < trace.experts:
                needed[expert] = max(needed.get(expert, 0.0), weight)
        found.append(needed if tokens == 1 else dict(sorted(needed.items())))
        start += tokens
    return found


@settings(deadline=None)
@given(small_traces(), st.integers(0, 7), st.sampled_from(sorted(POLICIES)))
def test_a_replay_is_what_the_cache_does(trace: Trace, capacity: int, policy: str) -> None:
    misses = []
    for layer in range(trace.layers):
        share = LayerResidency(trace.experts, capacity, POLICIES[policy])
        passes = filter(None, _passes(trace, layer))
        misses.append(sum(len(share.access(list(p), list(p.values())).misses) for p in passes))
    slots = np.full(trace.layers, capacity)
    assert simulate(accesses_of(trace), POLICIES[policy], slots, shared=False).sum(axis=(0, 2)).tolist() == misses


@settings(deadline=None)
@given(small_traces(longest_pass=1), st.integers(3, 7))
def test_lru_by_definition(trace: Trace, capacity: int) -> None:
    """An expert is there if fewer than `capacity` others were needed since it was, its own token's apart."""
    wanted = 0
    for layer in range(trace.layers):
        last: dict[int, int] = {}
        for now, needed in enumerate(_passes(trace, layer)):
            for expert in needed:
                newer = {e for e, at in last.items() if at > last.get(expert, now)}
                unsure = {e for e, at in last.items() if at == last.get(expert) and e != expert}
                if expert not in last or len(newer) >= capacity:
                    wanted += 1
                elif len(newer | unsure) >= capacity:
                    return  # equals: which of them stay is the replay's own choice
            last |= dict.fromkeys(needed, now)
    slots = np.full(trace.layers, capacity)
    assert simulate(accesses_of(trace), LRU, slots, shared=False).sum() == wanted


def _fewest_misses(passes: Needed, capacity: int) -> int:
    """By trying every set that could be kept after each pass."""

    @cache
    def best(at: int, kept: frozenset[int]) -> int:
        if at == len(passes):
            return 0
        there = frozenset(kept | passes[at].keys())
        cost = len(passes[at].keys() - kept)
        kept_next = [there] if len(there) <= capacity else _subsets(there, capacity)
        return cost + min(best(at + 1, each) for each in kept_next)

    return best(0, frozenset())


def _subsets(of: frozenset[int], size: int) -> list[frozenset[int]]:
    from itertools import combinations

    return [frozenset(chosen) for chosen in combinations(sorted(of), size)]


@settings(deadline=None, max_examples=60)
@given(small_traces(longest_pass=2), st.integers(0, 5))
def test_belady_is_the_optimum(trace: Trace, capacity: int) -> None:
    accesses = accesses_of(trace)
    future = accesses._replace(signal=next_uses(accesses))
    slots = np.full(trace.layers, capacity)
    found = simulate(future, BELADY, slots, shared=False).sum(axis=(0, 2)).tolist()
    assert found == [_fewest_misses(_passes(trace, layer), capacity) for layer in range(trace.layers)]


@settings(deadline=None, max_examples=60)
@given(small_traces(), st.integers(0, 7), st.sampled_from(["layer", "global"]))
def test_nothing_beats_belady(trace: Trace, capacity: int, scope: str) -> None:
    *others, belady = replay(trace, choose(["all"]), [(capacity,) * trace.layers], scopes=[scope])
    assert all(other.misses.sum() >= belady.misses.sum() for other in others)


@settings(deadline=None, max_examples=60)
@given(small_traces(), st.integers(0, 7))
def test_a_global_lru_is_one_share_of_all_keys(trace: Trace, capacity: int) -> None:
    share = LayerResidency(trace.layers * trace.experts, capacity * trace.layers, LRU)
    passes = [_passes(trace, layer) for layer in range(trace.layers)]
    misses = 0
    for step in range(len(trace.steps)):
        for layer in range(trace.layers):
            if passes[layer][step]:
                misses += len(share.access([layer * trace.experts + e for e in passes[layer][step]]).misses)
    found = simulate(accesses_of(trace), LRU, np.full(trace.layers, capacity), shared=True).sum()
    if trace.layers > 1:
        assert found == misses


@settings(deadline=None, max_examples=60)
@given(small_traces(), st.integers(0, 4), st.integers(0, 7))
def test_a_host_tier_sees_what_the_device_tier_misses(trace: Trace, device: int, host: int) -> None:
    layers = trace.layers
    (result, _) = replay(trace, [LRU, BELADY], [(device,) * layers], host_slots=(host,) * layers)
    wanted = []
    for layer in range(layers):
        above, below, misses = LayerResidency(trace.experts, device, LRU), LayerResidency(trace.experts, host, LRU), 0
        for needed in filter(None, _passes(trace, layer)):
            missed = above.access(list(needed)).misses
            misses += len(below.access(missed).misses) if missed else 0
        wanted.append(misses)
    assert result.host_misses.tolist() == wanted
    assert result.lookups.tolist() == [sum(map(len, _passes(trace, layer))) for layer in range(layers)]


@settings(deadline=None)
@given(small_traces())
def test_reuse_distances_give_lrus_hits_at_every_capacity(trace: Trace) -> None:
    """Mattson's stack: an access at distance d hits with more than d slots, one at a time."""
    one_by_one = Trace(
        trace.ids.transpose(0, 2, 1).reshape(-1, trace.layers, 1),
        trace.lens * trace.top_k,
        trace.names,
        trace.experts,
    )
    counts = reuse_distances(accesses_of(trace))
    for capacity in range(1, trace.experts + 1):
        missed = simulate(accesses_of(one_by_one), LRU, np.full(trace.layers, capacity), shared=False).sum()
        assert count_lookups(accesses_of(one_by_one)).sum() - missed == counts[:capacity].sum()


def test_without_numba_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    with pytest.raises(MoeLocalError, match=r"moe-local\[bench\]"):
        _jit.__wrapped__()
