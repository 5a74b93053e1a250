"""Measuring a model under one configuration, here, or under many, each in a process of its own."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from moe_local import __version__
from moe_local.errors import MoeLocalError

from . import options as opt
from .workload import WorkloadFlags

if TYPE_CHECKING:
    from moe_local.planning.options import Options

_SWEPT = ("ram", "vram", "experts", "policy", "prefetch", "io", "misses")


@dataclass(frozen=True)
class Asked:
    """What every configuration of a sweep shares."""

    model: str | None
    workload: WorkloadFlags
    pack: bool

    def arguments(self) -> list[str]:
        """The same on a command line."""
        model = [self.model] if self.model else []
        return [*model, *self.workload.arguments(), "--pack" if self.pack else "--no-pack"]


Configuration = tuple[opt.LoadFlags, str | None]


def configurations(flags: opt.LoadFlags, format: str | None) -> list[Configuration]:
    """Every combination of what was given as lists."""
    lists = [(getattr(flags, name) or "").split(",") for name in _SWEPT]
    combined: list[dict[str, Any]] = [
        {name: value.strip() or None for name, value in zip(_SWEPT, values, strict=True)}
        for values in itertools.product(*lists)
    ]
    found = [replace(flags, **values) for values in combined]
    formats = [None] if format is None else [name.strip() for name in format.split(",")]
    for one in found:
        one.options()  # refuses what makes no sense before anything runs
    return list(itertools.product(found, formats))


def measured(asked: Asked, flags: opt.LoadFlags, format: str | None) -> dict[str, Any]:
    """The report of one configuration, run here."""
    from moe_local.bench.live import measure
    from moe_local.bench.report import live_report
    from moe_local.bench.workload import prompts_hash

    from .load import load, progress

    request, options = asked.workload.request(), flags.options()
    with load(asked.model, options, pack=asked.pack, format=format) as engine:
        with progress() as report:
            run = measure(engine, request, report)
        needs = engine.plan.needs
        model = {
            "name": engine.load_plan.checkpoint.directory.name,
            "layers": len(needs.experts),
            "experts": list(needs.experts),
            "top_k": max(needs.top_k),
            "record_bytes": needs.slot,
            "format": engine.load_plan.expert_format,
            "config_hash": engine.load_plan.config_hash,
        }
    config = {**_config(options), "format": format}
    workload = {
        "prompts": len(request.prompts),
        "prompts_hash": prompts_hash(request.prompts),
        "new_tokens": request.new_tokens,
        "repeat": request.repeat,
        "route": None if asked.workload.route is None else asked.workload.route.name,
    }
    return live_report(__version__, {**model, "workload": workload}, [{"config": config, **run}])


def _config(options: Options) -> dict[str, Any]:
    return {
        "ram": options.ram,
        "vram": options.vram,
        "experts": options.experts,
        "policy": options.policy,
        "prefetch": options.prefetch,
        "io": options.io,
        "misses": options.misses,
        "context": options.context,
        "device": options.device,
        "dtype": options.dtype,
    }


def swept(asked: Asked, configurations: list[Configuration], *, interleaved: bool = False) -> dict[str, Any]:
    """The report of several, each in a process of its own: so that each has its own peak of memory.

    Where they are `interleaved` each has a process for each trial, and they take turns.
    """
    from .load import progress

    asked.workload.request()  # refuses what makes no sense before anything runs
    rounds = asked.workload.repeat if interleaved else 1
    each = replace(asked, workload=replace(asked.workload, repeat=1)) if interleaved else asked
    reports: list[list[tuple[dict[str, Any] | None, str]]] = [[] for _ in configurations]
    with progress() as show:
        for turn in range(rounds):
            for number, (flags, format) in enumerate(configurations):
                arguments = _arguments(flags, format)
                done = turn * len(configurations) + number
                show(" ".join(arguments), done / (rounds * len(configurations)))
                reports[number].append(_child([*each.arguments(), *arguments]))
    runs = [
        _run(found, {**_config(flags.options()), "format": format})
        for found, (flags, format) in zip(reports, configurations, strict=True)
    ]
    head = next((report for found in reports for report, _ in found if report is not None), None)
    if head is None:
        raise MoeLocalError(f"every configuration failed; the first: {runs[0]['error']}")
    workload = {**head["model"]["workload"], "repeat": asked.workload.repeat, "interleaved": interleaved}
    return {**head, "model": {**head["model"], "workload": workload}, "runs": runs}


def _run(found: list[tuple[dict[str, Any] | None, str]], config: dict[str, Any]) -> dict[str, Any]:
    """One of a report's `runs` of what its processes measured: the first's, with all trials; or the first error."""
    from moe_local.bench.live import summary

    if errors := [error for report, error in found if report is None]:
        return {"config": config, "error": errors[0]}
    (first, *others) = (report["runs"][0] for report, _ in found if report is not None)
    trials = [trial for run in (first, *others) for trial in run["trials"]]
    peak = max(run["memory"]["ram"]["peak"] for run in (first, *others))
    memory = {**first["memory"], "ram": {**first["memory"]["ram"], "peak": peak}}
    return {**first, "summary": summary(trials), "trials": trials, "memory": memory}


def _arguments(flags: opt.LoadFlags, format: str | None) -> list[str]:
    given = {f"--{name}": value for name, value in vars(flags).items() if not isinstance(value, bool)}
    if format is not None:
        given["--format"] = format
    switches = [f"--{name}" for name, value in vars(flags).items() if value is True]
    return [str(part) for name, value in given.items() if value is not None for part in (name, value)] + switches


def _child(arguments: list[str]) -> tuple[dict[str, Any] | None, str]:
    """A report, or the error that there was instead."""
    command = [sys.executable, "-m", "moe_local.cli.main", "bench", "live", *arguments, "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        try:
            out, err = child.communicate()
        except BaseException:
            child.terminate()
            raise
    if child.returncode == 0:
        return json.loads(out), ""
    errors = [line.removeprefix("error: ") for line in err.splitlines() if line.startswith("error: ")]
    return None, errors[-1] if errors else f"exit code {child.returncode}"
