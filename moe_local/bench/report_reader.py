"""Reading a report of which any part may be absent or senseless: what cannot be read is empty, never an error."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_local.policies.belady import BELADY
from moe_local.units import format_size

Part = Mapping[str, Any]
Report = Mapping[str, Any]

ORACLE = BELADY.name


def part(value: Any) -> Part:
    """An object of the report; an empty one for anything else."""
    return value if isinstance(value, Mapping) else {}


def parts(value: Any) -> list[Part]:
    """The objects of a list; things of another kind in it are left out."""
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, Sequence) else []


def number(value: Any) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # JSON's integers have no bound
        return None


def numbers(value: Any) -> list[float]:
    """A list's numbers, 0 where there is none."""
    return [number(item) or 0.0 for item in value] if isinstance(value, list | tuple) else []


def matrix(value: Any) -> list[list[float]]:
    """A list of lists of numbers."""
    return [numbers(row) for row in value] if isinstance(value, list | tuple) else []


def plain(value: Any, most: int = 80) -> str:
    """One line of printable characters, cut where it is longer than `most`."""
    text = "".join(c if c.isprintable() else " " for c in str(value)).strip()
    return text if len(text) <= most else f"{text[: most - 1]}…"


def runs(report: Report) -> list[Part]:
    """A live report's runs, one for each configuration."""
    return parts(report.get("runs"))


def results(report: Report) -> list[Part]:
    """The replay's results that have a capacity and a hit rate."""
    found = parts(part(report.get("replay")).get("results"))
    return [r for r in found if number(r.get("capacity")) is not None and number(r.get("hit_rate")) is not None]


def strategies(report: Report) -> list[Part]:
    """What each routing strategy made of a model's scores."""
    return parts(part(report.get("strategies")).get("results"))


def hits_of(found: Sequence[Part]) -> tuple[list[str], list[float]]:
    """The policies, the oracle last, and the capacities that strategies' hits are of."""
    hits = [hit for one in found for hit in parts(one.get("hits"))]
    policies = dict.fromkeys(plain(hit.get("policy", "?"), 20) for hit in hits)
    capacities = {known for hit in hits if (known := number(hit.get("capacity"))) is not None}
    return sorted(policies, key=lambda name: name == ORACLE), sorted(capacities)


def hit_rate(strategy: Part, policy: str, capacity: float) -> float | None:
    """Of a strategy's tokens one by one; None where it has none."""
    for hit in parts(strategy.get("hits")):
        if plain(hit.get("policy", "?"), 20) == policy and number(hit.get("capacity")) == capacity:
            return number(hit.get("hit_rate"))
    return None


def routing(report: Report) -> Part:
    """How the tokens were routed. It does not depend on a run's budget, so the first one that says it will do."""
    candidates = [report.get("routing"), *(run.get("routing") for run in runs(report))]
    return next((part(candidate) for candidate in candidates if part(candidate)), {})


def model_name(report: Report) -> str:
    """The name of the model, fit to be shown."""
    return plain(part(report.get("model")).get("name") or "", 60)


def padded(layers: list[list[float]]) -> NDArray[np.float64]:
    """[layers, most experts of any]; NaN where a layer has fewer."""
    filled = np.full((len(layers), max(map(len, layers), default=0)), np.nan)
    for row, values in zip(filled, layers, strict=True):
        row[: len(values)] = values
    return filled


def relative_usage(routed: Part) -> NDArray[np.float64]:
    """[layers, experts]: uses of an expert as a multiple of the layer's mean; NaN where there is no such expert.

    Empty where no use was counted.
    """
    counts = padded([[max(0.0, count) for count in row] for row in matrix(routed.get("usage"))])
    if not (counts > 0).any():
        return np.empty((0, 0))
    used = ~np.isnan(counts)
    means = np.where(used, counts, 0).sum(axis=1, keepdims=True) / np.maximum(1, used.sum(axis=1, keepdims=True))
    relative: NDArray[np.float64] = counts / np.where(means > 0, means, 1)
    return relative


def layer_shares(layers: Part) -> NDArray[np.float64]:
    """[3, layers]: the share of a layer's requests that the device tier, the host tier and the disk answered.

    Empty where there was no request.
    """
    columns = [numbers(layers.get(name)) for name in ("hits", "misses", "host_hits")]
    count = min(len(columns[0]), len(columns[1]))
    hits, misses, host = (np.maximum(0, np.array([*column, *[0.0] * count][:count])) for column in columns)
    host = np.minimum(host, misses)  # misses of the device tier that the host tier had
    if not (hits + misses > 0).any():
        return np.empty((3, 0))
    total = np.maximum(hits + misses, 1)
    shares: NDArray[np.float64] = np.stack([hits, host, misses - host]) / total
    return shares


def run_labels(found: Sequence[Part]) -> list[str]:
    """What tells runs apart: the settings in which their configurations differ, else their number."""
    configs = [part(run.get("config")) for run in found]
    keys = differing(configs)
    labels = [" · ".join(_setting(key, config[key]) for key in keys if key in config) for config in configs]
    return [
        label if label and labels.count(label) == 1 else f"run {index}{' · ' if label else ''}{label}"
        for index, label in enumerate(labels, start=1)
    ]


def differing(configs: Sequence[Part]) -> list[str]:
    """The settings that are not the same in all of these."""
    keys = dict.fromkeys(key for config in configs for key in config)
    return [key for key in keys if len({repr(config.get(key)) for config in configs}) > 1]


def describe_config(config: Part) -> str:
    """All the settings of a run on one line."""
    return " · ".join(_setting(key, value) for key, value in config.items() if value is not None)


def _setting(key: str, value: Any) -> str:
    known = number(value)
    if key in ("ram", "vram"):
        return f"{key.upper()} {'unbounded' if known is None else format_size(known)}"
    if key == "experts" and known is not None:
        return f"{known:.0%} of experts"
    if key == "context" and known is not None:
        return f"{known:.0f} tokens of context"
    return plain(f"{key} {value}" if key in ("policy", "format") else f"{key}={value}", 40)
