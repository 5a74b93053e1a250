"""How evenly a routing uses the experts, and which prompts use which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_local.bench.simulate import Accesses, reuse_distances
from moe_local.bench.trace import Trace

_MARKED = 5  # experts named for a group
_RARE = 0.1  # an expert that a group gives less than this part of a fair share does not mark it


def routing(trace: Trace, groups: Sequence[str] | None = None) -> dict[str, Any]:
    """The report's account of a routing. `groups` [prompts] compares the prompts of one name with the others'."""
    usage = count_usage(trace)  # [layers, experts]
    shares = usage / np.maximum(usage.sum(axis=1, keepdims=True), 1)
    return {
        "tokens": trace.tokens,
        "usage": usage.tolist(),
        "entropy": _rounded(_entropy(shares)),
        "dead": _rounded((usage == 0).mean(axis=1)),
        "hot": _rounded(_hot(shares)),
        "adjacent_reuse": _rounded(adjacent_reuse(trace)),
        "reuse_distance": _reuse_distance(trace),
        "groups": None if groups is None else _groups(trace, groups),
    }


def count_usage(trace: Trace, tokens: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
    """Uses of each expert, [layers, experts]; of the tokens [tokens] that are True only, if given."""
    ids = trace.ids if tokens is None else trace.ids[tokens]
    wide = trace.experts + 1
    counts = [
        np.bincount(ids[:, layer].ravel().clip(max=trace.experts), minlength=wide) for layer in range(trace.layers)
    ]
    return np.array(counts)[:, : trace.experts]


def _entropy(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of each layer, 1 where all experts are used alike."""
    logs = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
    found: NDArray[np.float64] = -(shares * logs).sum(axis=1) / max(np.log(shares.shape[1]), 1e-9)
    return found


def _hot(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """The least share of a layer's experts that takes half of its uses."""
    covered = np.cumsum(-np.sort(-shares, axis=1), axis=1)
    found: NDArray[np.float64] = ((covered < 0.5 - 1e-9).sum(axis=1) + 1) / shares.shape[1]
    return found


def adjacent_reuse(trace: Trace) -> NDArray[np.float64]:
    """Of each layer, the share of a token's experts that the token before it, in the same prompt, used as well."""
    starts = np.cumsum(trace.lens)[:-1]
    follows = np.ones(trace.tokens, dtype=bool)
    follows[0] = False
    follows[starts] = False
    at = np.flatnonzero(follows)
    if not len(at):
        return np.zeros(trace.layers)
    now, before = trace.ids[at], trace.ids[at - 1]
    real = now < trace.experts
    again = np.zeros(now.shape, dtype=bool)
    for j in range(trace.top_k):
        again |= now == before[:, :, j : j + 1]
    found: NDArray[np.float64] = (again & real).sum(axis=(0, 2)) / np.maximum(real.sum(axis=(0, 2)), 1)
    return found


def _reuse_distance(trace: Trace) -> dict[str, list[float]]:
    counts = reuse_distances(accesses_of(trace))
    total = max(1, int((trace.ids < trace.experts).sum()))
    return {"distance": list(range(len(counts))), "share": _rounded(counts / total, 6)}


def accesses_of(trace: Trace) -> Accesses:
    """All of a trace, by somebody who does not know when anything is needed next."""
    shape = trace.ids.shape
    return Accesses(
        trace.ids, np.ones(shape, dtype=np.bool_), np.zeros(shape, np.float32), trace.steps, trace.experts
    )


def _groups(trace: Trace, groups: Sequence[str]) -> dict[str, Any]:
    names = sorted(set(groups))
    of_token = np.repeat([names.index(group) for group in groups], trace.lens)
    usage = np.array([count_usage(trace, of_token == group) for group in range(len(names))], dtype=float)
    flat = usage.reshape(len(names), -1)
    unit = flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-9)
    return {
        "names": names,
        "tokens": [int((of_token == group).sum()) for group in range(len(names))],
        "overlap": [_rounded(row) for row in unit @ unit.T],
        "marked": [_marked(usage, group) for group in range(len(names))],
    }


def _marked(usage: NDArray[np.float64], group: int) -> list[dict[str, Any]]:
    """The experts that a group uses most beyond what all groups together do; usage is [groups, layers, experts]."""
    experts = usage.shape[2]
    mine = usage[group] / np.maximum(usage[group].sum(axis=1, keepdims=True), 1)
    whole = usage.sum(axis=0)
    all_ = whole / np.maximum(whole.sum(axis=1, keepdims=True), 1)
    lift = np.divide(mine, all_, out=np.zeros_like(mine), where=(all_ > 0) & (mine > _RARE / experts))
    best = np.argsort(-lift, axis=None, kind="stable")[:_MARKED]
    return [
        {
            "layer": int(at // experts),
            "expert": int(at % experts),
            "lift": round(float(lift.flat[at]), 3),
            "share": round(float(mine.flat[at]), 5),
        }
        for at in best
        if lift.flat[at] > 1
    ]


def _rounded(values: NDArray[np.float64], digits: int = 4) -> list[float]:
    return [round(float(value), digits) for value in values]
