"""Two reports side by side: ratios, and whether they are more than noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moe_local.errors import MoeLocalError

SAME, BETTER, WORSE = "within noise", "better", "worse"
_LESS_IS_BETTER = ("time_to_first_token", "inter_token_", "bytes_", "stall_share")


@dataclass(frozen=True)
class Comparison:
    """One metric of one configuration in both reports."""

    config: str
    metric: str
    before: float
    after: float
    verdict: str

    @property
    def ratio(self) -> float | None:
        """After over before; None where there is nothing to divide by."""
        return self.after / self.before if self.before else None


def compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Comparison]:
    """Every metric of every configuration that both reports have.

    A difference counts where the ranges of the trials do not touch. Raises MoeLocalError when the reports are of
    different kinds or have no configuration in common.
    """
    if before["kind"] != after["kind"]:
        raise MoeLocalError(f"one report is {before['kind']} and the other {after['kind']}", remedy="compare alike")
    first, second = _by_config(before), _by_config(after)
    common = [config for config in first if config in second]
    if len(first) == len(second) == 1:
        common, second = list(first), dict(zip(first, second.values(), strict=True))
    if not common:
        raise MoeLocalError("the reports have no configuration in common", remedy="measure the same ones")
    return [
        Comparison(config, metric, spread["median"], other["median"], _verdict(metric, spread, other))
        for config in common
        for metric, spread in first[config].items()
        if (other := second[config].get(metric)) is not None
    ]


def _by_config(report: Mapping[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """The metrics of each configuration, by a name for it."""
    if report["kind"] == "replay":
        return {
            f"{r['policy']} {r['scope']} {r['capacity']:.4g}": {"hit_rate": _exactly(r["hit_rate"])}
            for r in report["replay"]["results"]
        }
    return {name_of(run["config"]): run["summary"] for run in report["runs"] if "summary" in run}


def _exactly(value: float) -> dict[str, float]:
    return {"median": value, "low": value, "high": value}


def name_of(config: Mapping[str, Any]) -> str:
    """A configuration in a few words: what was given."""
    return " ".join(f"{name} {value}" for name, value in config.items() if value is not None) or "defaults"


def _verdict(metric: str, before: Mapping[str, float], after: Mapping[str, float]) -> str:
    if before["low"] <= after["high"] and after["low"] <= before["high"]:
        return SAME
    return BETTER if (after["median"] < before["median"]) == metric.startswith(_LESS_IS_BETTER) else WORSE
