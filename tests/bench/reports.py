"""Made-up reports of any size, as `moe-local bench` writes them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

GIB = 1 << 30
CAPACITIES = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)


def live(layers: int = 4, experts: int = 8, top_k: int = 2, runs: int = 1, *, host: bool = True) -> dict[str, Any]:
    """A measurement of `runs` configurations."""
    rng = np.random.default_rng(0)
    routing = _routing(rng, layers, experts, top_k)
    report = {
        **_head("live", layers, experts, top_k),
        "runs": [_run(rng, layers, experts, top_k, routing, (run + 1) / runs, host) for run in range(runs)],
    }
    return json.loads(json.dumps(report))


def replay(layers: int = 4, experts: int = 8, top_k: int = 2) -> dict[str, Any]:
    """A replay of five policies at seven capacities."""
    rng = np.random.default_rng(0)
    strengths = {"lru": 0.5, "lfu": 0.53, "lfru": 0.49, "weight": 0.47, "belady": 0.34}
    found = []
    for policy, strength in strengths.items():
        for scope in ("layer", "global"):
            for capacity in CAPACITIES:
                hit = capacity ** (strength + 0.06 * (scope == "global"))
                tilt = np.linspace(0.12, -0.12, layers) if scope == "global" else np.zeros(layers)
                rates = np.clip(hit + tilt + rng.normal(0, 0.02, layers), 0, 1)
                found.append(
                    {
                        "policy": policy,
                        "scope": scope,
                        "capacity": capacity,
                        "slots": int(capacity * layers * experts),
                        "hit_rate": hit,
                        "layer_hit_rates": rates.tolist(),
                        "misses_per_token": (1 - hit) * layers * top_k,
                        "bytes_per_token": (1 - hit) * layers * top_k * 3e6,
                        "tokens_per_second": [4 / (1.05 - hit), 7 / (1.05 - hit)],
                        "profile": "rtx-3060-12gb",
                    }
                )
    report = {
        **_head("replay", layers, experts, top_k),
        "routing": _routing(rng, layers, experts, top_k),
        "replay": {"tokens": 2048, "capacities": list(CAPACITIES), "results": found},
    }
    return json.loads(json.dumps(report))


def _head(kind: str, layers: int, experts: int, top_k: int) -> dict[str, Any]:
    return {
        "schema": "moe-local-bench/1",
        "kind": kind,
        "version": "0.1.0",
        "machine": {
            "platform": "Linux 6.1 x86_64",
            "cores": 16,
            "cpu": "AMD Ryzen 9 7950X",
            "gpus": ["NVIDIA GeForce RTX 4090"],
            "memory": 64 * GIB,
        },
        "model": {
            "name": "Qwen/Qwen3-30B-A3B",
            "layers": layers,
            "experts": [experts] * layers,
            "top_k": top_k,
            "record_bytes": 2_949_120,
            "format": "int4",
        },
    }


def _routing(rng: np.random.Generator, layers: int, experts: int, top_k: int) -> dict[str, Any]:
    tokens = 2048
    weights = rng.gamma(0.6, 1.0, (layers, experts)) ** 1.2 + 1e-4
    weights[:, max(7, experts // 6) - 1 :: max(7, experts // 6)] = 0
    weights /= weights.sum(axis=1, keepdims=True)
    counts = np.stack([rng.multinomial(tokens * top_k, row) for row in weights])
    logs = np.log(np.where(weights > 0, weights, 1))
    shares = 0.93 * np.exp(-np.arange(experts) / (experts / 5))
    shares *= 0.93 / shares.sum()
    names = ["prose", "code", "mathematics", "German"]
    return {
        "tokens": tokens,
        "usage": counts.tolist(),
        "entropy": (-(weights * logs).sum(axis=1) / np.log(max(2, experts))).tolist(),
        "dead": (counts == 0).mean(axis=1).tolist(),
        "hot": rng.uniform(0.05, 0.2, layers).tolist(),
        "adjacent_reuse": rng.uniform(0.2, 0.5, layers).tolist(),
        "reuse_distance": {"distance": list(range(experts)), "share": shares.tolist()},
        "groups": {
            "names": names,
            "tokens": [512] * 4,
            "overlap": [[1.0 if a == b else 0.4 + 0.1 * abs(a - b) for a in range(4)] for b in range(4)],
            "marked": [
                [{"layer": m % layers, "expert": (g + m) % experts, "lift": 6.1 - m, "share": 0.08} for m in range(5)]
                for g in range(4)
            ],
        },
    }


def _run(
    rng: np.random.Generator,
    layers: int,
    experts: int,
    top_k: int,
    routing: dict[str, Any],
    share: float,
    host: bool,
) -> dict[str, Any]:
    slots = max(1, int(share * 0.5 * experts))
    counts = np.array(routing["usage"])
    ranks = (-counts + rng.normal(0, counts.mean(), counts.shape)).argsort(axis=1).argsort(axis=1)
    hits = rng.uniform(0.5, 0.8, layers) * share**0.3
    uses = counts.sum(axis=1)
    speed = 6 + 20 * share
    return {
        "config": {
            "ram": int(share * 16) * GIB,
            "vram": 8 * GIB if host else None,
            "experts": share * 0.5,
            "policy": "lru",
            "context": 4096,
            "format": None,
        },
        "slots": {"device": [slots] * layers, "host": [slots] * layers if host else None},
        "summary": {
            "decode_tokens_per_second": {"median": speed, "low": speed * 0.93, "high": speed * 1.04},
            "prefill_tokens_per_second": {"median": 217.9, "low": 210.0, "high": 222.1},
            "time_to_first_token": {"median": 1.31, "low": 1.2, "high": 1.5},
            "inter_token_p50": {"median": 1 / speed, "low": 0.9 / speed, "high": 1.1 / speed},
            "inter_token_p95": {"median": 2 / speed, "low": 1.9 / speed, "high": 2.1 / speed},
            "inter_token_p99": {"median": 3 / speed, "low": 2.9 / speed, "high": 3.1 / speed},
            "hit_rate": {"median": float(hits.mean()), "low": 0.6, "high": 0.7},
            "decode_hit_rate": {"median": 0.68, "low": 0.67, "high": 0.7},
            "host_hit_rate": {"median": 0.5, "low": 0.5, "high": 0.5},
            "bytes_read_per_token": {"median": 43e6, "low": 42e6, "high": 44e6},
            "stall_share": {"median": 0.19, "low": 0.17, "high": 0.21},
        },
        "layers": {
            "hits": (hits * uses).astype(int).tolist(),
            "misses": ((1 - hits) * uses).astype(int).tolist(),
            "host_hits": ((1 - hits) * uses * 0.6 * host).astype(int).tolist(),
        },
        "links": {
            "disk": {"bytes": 92 * 10**9, "seconds": 61.2, "gb_per_second": 1.5, "measured_gb_per_second": 1.9},
            "upload": {"bytes": 120 * 10**9, "seconds": 11.0, "gb_per_second": 10.9, "measured_gb_per_second": None},
        },
        "memory": {
            "ram": {"budget": 16 * GIB, "planned": int(15.2 * GIB), "peak": int(14.8 * GIB)},
            "vram": {"budget": 8 * GIB, "planned": int(7.9 * GIB), "peak": int(7.2 * GIB)} if host else None,
        },
        "energy_joules_per_token": 7.4,
        "routing": routing,
        "resident": (ranks < slots).astype(int).tolist(),
        "timeline": {"spans": _spans(rng, layers, experts, top_k, host)},
    }


def _spans(rng: np.random.Generator, layers: int, experts: int, top_k: int, host: bool) -> list[dict[str, Any]]:
    now, spans = 0.0, []

    def add(kind: str, layer: int, expert: int | None, begin: float, seconds: float) -> None:
        spans.append({"kind": kind, "layer": layer, "expert": expert, "begin": begin, "end": begin + seconds})

    for layer in range(layers):
        misses = int(rng.binomial(top_k, 0.35))
        waits = rng.uniform(0.4e-3, 1.6e-3, misses)
        for wait in waits:
            expert = int(rng.integers(experts))
            add("read", layer, expert, now, wait)
            if host:
                add("upload", layer, expert, now + wait, 0.15e-3)
        add("compute", layer, None, now, 0.5e-3)
        if misses:
            add("stall", layer, None, now + 0.5e-3, float(max(waits.max() - 0.3e-3, 1e-5)))
            now += float(max(waits.max() - 0.3e-3, 1e-5))
        add("compute", layer, None, now + 0.5e-3, 0.3e-3)
        now += 0.8e-3
    return spans


def poisoned(value: Any, text: str) -> Any:
    """A copy of a report in which every string is `text`."""
    if isinstance(value, dict):
        return {key: poisoned(item, text) for key, item in value.items()}
    if isinstance(value, list):
        return [poisoned(item, text) for item in value]
    return text if isinstance(value, str) else value


def emptied(value: Any) -> Any:
    """A copy of a report in which every list of figures is empty."""
    if isinstance(value, dict):
        return {key: emptied(item) for key, item in value.items()}
    if isinstance(value, list):
        return [emptied(item) for item in value if isinstance(item, dict)]
    return value


def nulled(value: Any) -> Any:
    """A copy of a report in which every figure is null."""
    if isinstance(value, dict):
        return {key: nulled(item) for key, item in value.items()}
    if isinstance(value, list):
        return [nulled(item) for item in value]
    return None if isinstance(value, int | float) else value
