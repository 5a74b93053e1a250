"""What a report is of, in words: for the head of a page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from moe_local.bench.report_reader import (
    Part,
    Report,
    describe_config,
    model_name,
    number,
    numbers,
    part,
    plain,
    runs,
)
from moe_local.units import format_size


def title(report: Report) -> str:
    return f"moe-local bench: {model_name(report) or 'an unnamed model'}"


def lead(report: Report) -> str:
    version = f" by moe-local {plain(report['version'], 20)}" if report.get("version") else ""
    if report.get("kind") == "routing":
        told = part(report.get("strategies"))
        routed, batch = (number(told.get(name)) or 0 for name in ("tokens", "batch"))
        return (
            f"What routing strategies would make of the routers' scores of {routed:.0f} tokens, {batch:.0f} routed"
            f" together{version}."
        )
    if report.get("kind") == "replay":
        tokens = number(part(report.get("replay")).get("tokens"))
        trace = "A recorded trace" if tokens is None else f"A recorded trace of {tokens:.0f} tokens"
        return f"{trace}, replayed under several policies and cache sizes{version}."
    return f"Measured live{version}."


def facts(report: Report) -> list[tuple[str, str]]:
    """Model, workload, machine and settings: labels and what is known."""
    return [(label, value) for label, value in _facts(report) if value]


def _facts(report: Report) -> Iterator[tuple[str, str]]:
    model, machine = part(report.get("model")), part(report.get("machine"))
    yield "experts", _experts(numbers(model.get("experts")), number(model.get("top_k")))
    size = number(model.get("record_bytes"))
    yield "format", _listed([model.get("format"), None if size is None else f"{format_size(size)} an expert"])
    yield "workload", _workload(part(model.get("workload")))
    cores = number(machine.get("cores"))
    yield "processor", _listed([machine.get("cpu"), None if cores is None else f"{cores:.0f} cores"])
    gpus = machine.get("gpus")
    yield "graphics", _listed(gpus) if isinstance(gpus, list) else ""
    memory = number(machine.get("memory"))
    yield "memory", "" if memory is None else format_size(memory)
    yield "system", _listed([machine.get("platform")])
    yield "versions", _listed(f"{name} {plain(number, 20)}" for name, number in part(report.get("versions")).items())
    yield "date", plain(report["date"], 30) if report.get("date") else ""
    for index, run in enumerate(runs(report), start=1):
        failed = f" · failed: {plain(run['error'], 200)}" if run.get("error") else ""
        settings = describe_config(part(run.get("config")))
        yield f"run {index}" if len(runs(report)) > 1 else "settings", f"{settings}{failed}"


def _workload(workload: Part) -> str:
    words = {"prompts": "prompts", "new_tokens": "new tokens each", "repeat": "timed passes"}
    counts = ((number(workload.get(name)), said) for name, said in words.items())
    told = [f"{count:.0f} {said}" for count, said in counts if count is not None]
    if workload.get("prompts_hash"):
        told.append(f"prompts' hash {plain(workload['prompts_hash'], 16)}")
    return _listed(told)


def _experts(counts: list[float], top_k: float | None) -> str:
    if not counts:
        return ""
    low, high = min(counts), max(counts)
    each = f"{low:.0f}" if low == high else f"{low:.0f} to {high:.0f}"
    used = "" if top_k is None else f", {top_k:.0f} of them a token"
    return f"{each} in each of {len(counts)} layers{used}"


def _listed(values: Iterable[object]) -> str:
    return ", ".join(plain(value) for value in values if value)
