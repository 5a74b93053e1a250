"""Two reports side by side, or the runs of one: ratios, whether they are more than noise, and what else differs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from moe_local.bench.report_reader import differing
from moe_local.errors import MoeLocalError

SAME, BETTER, WORSE = "within noise", "better", "worse"
_LESS_IS_BETTER = ("time_to_first_token", "inter_token_", "bytes_", "stall_share")

Run = tuple[Mapping[str, Any], Mapping[str, Mapping[str, float]]]  # configuration, and the spread of each metric


@dataclass(frozen=True)
class Comparison:
    """One metric of one configuration on both sides."""

    config: str
    metric: str
    before: float
    after: float
    verdict: str

    @property
    def ratio(self) -> float | None:
        """After over before; None where there is nothing to divide by."""
        return self.after / self.before if self.before else None


class Difference(NamedTuple):
    """Something else in which two reports differ."""

    what: str
    before: Any
    after: Any


class Compared(NamedTuple):
    differences: Sequence[Difference]
    comparisons: Sequence[Comparison]


def compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> Compared:
    """Every metric of every configuration that both reports have, and what differs between the reports as wholes.

    A setting that is the same in all runs of a report tells its runs apart from nothing: where it is another in the
    other report that is a difference, and the runs are paired by the other settings. A change counts where the
    ranges of the trials do not touch. Raises MoeLocalError when the reports are of different kinds or have no
    configuration in common.
    """
    if before["kind"] != after["kind"]:
        raise MoeLocalError(f"one report is {before['kind']} and the other {after['kind']}", remedy="compare alike")
    first, second = _runs(before), _runs(after)
    varied = _varied(first) | _varied(second)
    left, right = _by(varied, first), _by(varied, second)
    found = [each for name in left if name in right for each in _compared(name, left[name], right[name])]
    if not found:
        raise MoeLocalError("the reports have no configuration in common", remedy="measure the same ones")
    return Compared([*_differences(_facts(before), _facts(after)), *_fixed(first, second, varied)], found)


def compare_within(report: Mapping[str, Any], by: str) -> list[Comparison]:
    """The runs of one report that differ by a setting alone: each against the first value of it.

    Raises MoeLocalError where no two runs do.
    """
    runs = _runs(report)
    others = _varied(runs) - {by}
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(_name({key: run[0].get(key) for key in sorted(others)}), []).append(run)
    found = [
        each
        for name, (base, *rest) in groups.items()
        for config, metrics in rest
        for each in _compared(_against(name, by, base[0], config), base[1], metrics)
    ]
    if not found:
        known = ", ".join(sorted(_varied(runs))) or "nothing"
        raise MoeLocalError(f"no two runs differ by {by} alone", remedy=f"they differ by {known}")
    return found


def _against(name: str, by: str, base: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    told = f"{by} {config.get(by)} against {base.get(by)}"
    return f"{name}: {told}" if name else told


def _runs(report: Mapping[str, Any]) -> list[Run]:
    """Those that were not cut short by an error."""
    if report["kind"] == "replay":
        return [
            (
                {"policy": one["policy"], "scope": one["scope"], "capacity": f"{one['capacity']:.4g}"},
                {"hit_rate": dict.fromkeys(("median", "low", "high"), one["hit_rate"])},
            )
            for one in report["replay"]["results"]
        ]
    return [(run["config"], run["summary"]) for run in report["runs"] if "summary" in run]


def _varied(runs: Sequence[Run]) -> set[str]:
    """The settings in which runs of one report differ."""
    return set(differing([config for config, _ in runs]))


def _by(keys: set[str], runs: Sequence[Run]) -> dict[str, Mapping[str, Mapping[str, float]]]:
    """The metrics of each run, by a name made of its values of some settings."""
    return {_name({key: value for key, value in config.items() if key in keys}): metrics for config, metrics in runs}


def _name(config: Mapping[str, Any]) -> str:
    return " ".join(f"{name} {value}" for name, value in config.items() if value is not None)


def _compared(
    config: str, before: Mapping[str, Mapping[str, float]], after: Mapping[str, Mapping[str, float]]
) -> Iterator[Comparison]:
    for metric, spread in before.items():
        if (other := after.get(metric)) is not None:
            yield Comparison(config, metric, spread["median"], other["median"], _verdict(metric, spread, other))


def _verdict(metric: str, before: Mapping[str, float], after: Mapping[str, float]) -> str:
    if before["low"] <= after["high"] and after["low"] <= before["high"]:
        return SAME
    return BETTER if (after["median"] < before["median"]) == metric.startswith(_LESS_IS_BETTER) else WORSE


def _fixed(first: Sequence[Run], second: Sequence[Run], varied: set[str]) -> Iterator[Difference]:
    """Settings that no run of a report differs in, and the reports do."""
    left, right = first[0][0], second[0][0]
    for key in dict.fromkeys([*left, *right]):
        if key not in varied and left.get(key) != right.get(key):
            yield Difference(key, left.get(key), right.get(key))


def _facts(report: Mapping[str, Any]) -> dict[str, Any]:
    """What figures depend on beside the settings, flat; when a report was made is none of it."""
    parts = {name: report.get(name) for name in ("version", "versions", "machine", "model")}
    return dict(_flat("", parts))


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(f"{name} {key}".strip(), inner)
    else:
        yield name, value


def _differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Difference]:
    for key in dict.fromkeys([*before, *after]):
        if before.get(key) != after.get(key):
            yield Difference(key, before.get(key), after.get(key))
