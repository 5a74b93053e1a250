"""Two reports side by side, or the runs of one: ratios, whether they are more than noise, and what else differs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from moe_local.bench.paired import LEAST, ratio_interval
from moe_local.bench.report_reader import differing, part
from moe_local.errors import MoeLocalError

SAME, BETTER, WORSE = "within noise", "better", "worse"
UNTOLD = "too few trials"
_LESS_IS_BETTER = ("time_to_first_token", "inter_token_", "bytes_", "stall_share")

Trials = Sequence[Mapping[str, float]]  # the metrics of each


class Run(NamedTuple):
    """What was measured under one configuration: the spread of each metric, and each trial's where they took turns
    with those of others.
    """

    config: Mapping[str, Any]
    metrics: Mapping[str, Mapping[str, float]]
    turns: Trials = ()


@dataclass(frozen=True)
class Comparison:
    """One metric of one configuration on both sides."""

    config: str
    metric: str
    before: float
    after: float
    verdict: str
    interval: tuple[float, float] | None = None  # that holds the ratio with 95% confidence

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
    # Trials of two reports took no turns with one another.
    found = [
        each for name in left if name in right for each in _compared(name, left[name]._replace(turns=()), right[name])
    ]
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
        groups.setdefault(_name({key: run.config.get(key) for key in sorted(others)}), []).append(run)
    found = [
        each
        for name, (base, *rest) in groups.items()
        for other in rest
        for each in _compared(_against(name, by, base.config, other.config), base, other)
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
            Run(
                {"policy": one["policy"], "scope": one["scope"], "capacity": f"{one['capacity']:.4g}"},
                {"hit_rate": dict.fromkeys(("median", "low", "high"), one["hit_rate"])},
            )
            for one in report["replay"]["results"]
        ]
    turns = part(part(report.get("model")).get("workload")).get("interleaved")
    found = (run for run in report["runs"] if "summary" in run)
    return [Run(run["config"], run["summary"], run.get("trials", ()) if turns else ()) for run in found]


def _varied(runs: Sequence[Run]) -> set[str]:
    """The settings in which runs of one report differ."""
    return set(differing([run.config for run in runs]))


def _by(keys: set[str], runs: Sequence[Run]) -> dict[str, Run]:
    """The runs, by a name made of their values of some settings."""
    return {_name({key: value for key, value in run.config.items() if key in keys}): run for run in runs}


def _name(config: Mapping[str, Any]) -> str:
    return " ".join(f"{name} {value}" for name, value in config.items() if value is not None)


def _compared(config: str, before: Run, after: Run) -> Iterator[Comparison]:
    for metric, spread in before.metrics.items():
        if (other := after.metrics.get(metric)) is not None:
            interval = _interval(metric, before.turns, after.turns)
            if interval is not None:
                verdict = _told_by(metric, interval)
            elif 0 < len(before.turns) < LEAST and spread != other:
                verdict = UNTOLD
            else:
                verdict = _verdict(metric, spread, other)
            yield Comparison(config, metric, spread["median"], other["median"], verdict, interval)


def _interval(metric: str, before: Trials, after: Trials) -> tuple[float, float] | None:
    both = [pair for pair in zip(before, after, strict=False) if all(metric in one for one in pair)]
    return ratio_interval([one[metric] for one, _ in both], [other[metric] for _, other in both])


def _told_by(metric: str, interval: tuple[float, float]) -> str:
    if interval[0] <= 1 <= interval[1]:
        return SAME
    return BETTER if (interval[1] < 1) == metric.startswith(_LESS_IS_BETTER) else WORSE


def _verdict(metric: str, before: Mapping[str, float], after: Mapping[str, float]) -> str:
    if before["low"] <= after["high"] and after["low"] <= before["high"]:
        return SAME
    return BETTER if (after["median"] < before["median"]) == metric.startswith(_LESS_IS_BETTER) else WORSE


def _fixed(first: Sequence[Run], second: Sequence[Run], varied: set[str]) -> Iterator[Difference]:
    """Settings that no run of a report differs in, and the reports do."""
    left, right = first[0].config, second[0].config
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
