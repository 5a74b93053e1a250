"""Measuring a model that runs: speeds, hits, stalls and memory over repeated passes through some prompts."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from operator import add
from pathlib import Path
from typing import Any

from moe_local.bench.energy import EnergyMeter
from moe_local.bench.links import measure_disk, measure_upload
from moe_local.bench.record import Recorder
from moe_local.bench.routing_stats import routing
from moe_local.bench.trace import Trace, read_trace
from moe_local.bench.trace_driver import Route
from moe_local.bench.workload import Prompt
from moe_local.engine import Engine
from moe_local.errors import MoeLocalError
from moe_local.generation.generate import Generation
from moe_local.generation.sampling import Sampling
from moe_local.memory.limits import peak_memory
from moe_local.telemetry import Counters, Span

Report = Callable[[str, float], None]
_TIMELINE_TOKENS = 8


@dataclass(frozen=True)
class Request:
    """What to measure."""

    prompts: Sequence[Prompt]
    new_tokens: int = 64
    repeat: int = 3
    by: str | None = None  # a field of the prompts to group them by
    record: Path | None = None  # where to keep the warm-up's routing
    route: Trace | None = None  # drives the routing

    def __post_init__(self) -> None:
        for name, value in (("--new-tokens", self.new_tokens), ("--repeat", self.repeat)):
            if value < 1:
                raise MoeLocalError(f"{name} {value} is not at least 1")
        if self.new_tokens < 2:
            raise MoeLocalError("--new-tokens 1 leaves no decoding to measure", remedy="give at least 2")
        if self.record is not None and self.route is not None:
            raise MoeLocalError("--record and --route were both given", remedy="a routed run is the trace already")


def measure(engine: Engine, request: Request, report: Report) -> dict[str, Any]:
    """One of the report's `runs`: a warm-up pass, whose routing is looked at, and `repeat` that are timed.

    The answers do not stop before `new_tokens`, and are greedy. Raises MoeLocalError for a prompt that does not fit.
    """
    ids = [engine.encode(prompt.text) for prompt in request.prompts]
    groups = None if request.by is None else [prompt.group(request.by) for prompt in request.prompts]
    engine.model.generation_config.eos_token_id = None
    report("measuring the disk", 0.0)
    speeds = {"disk": measure_disk(engine), "upload": measure_upload(engine)}
    passes = _Passes(engine, ids, request, report)
    trace = passes.warm_up()
    cold = engine.cache.counters.snapshot()
    meter = EnergyMeter()
    trials = [passes.run(f"trial {number + 1}") for number in range(request.repeat)]
    metrics = [trial.metrics() for trial in trials]
    joules = meter.joules()
    timeline = _timeline(engine, ids[0])
    counters = reduce(add, (trial.counters for trial in trials))
    tokens = sum(trial.new_tokens for trial in trials)
    return {
        "slots": {"device": list(engine.plan.device_slots), "host": engine.plan.host_slots},
        "summary": summary(metrics),
        "trials": metrics,
        "cold": {"hits": cold.layer_hits, "misses": cold.layer_misses, "host_hits": cold.layer_host_hits},
        "layers": {
            "hits": counters.layer_hits,
            "misses": counters.layer_misses,
            "host_hits": counters.layer_host_hits,
        },
        "links": _links(counters, speeds),
        "memory": _memory(engine),
        "energy_joules_per_token": None if joules is None else round(joules / tokens, 4),
        "routing": None if trace is None else routing(trace, groups),
        "resident": _mask(engine.cache.residents(), engine.plan.needs.experts),
        "timeline": timeline,
    }


@dataclass(frozen=True)
class _Trial:
    """One pass through all prompts."""

    generations: Sequence[Generation]

    @property
    def counters(self) -> Counters:
        return reduce(add, (generation.counters for generation in self.generations))

    @property
    def new_tokens(self) -> int:
        return sum(generation.new_tokens for generation in self.generations)

    def metrics(self) -> dict[str, float]:
        decode = reduce(add, (generation.decode for generation in self.generations))
        first = [generation.time_to_first_token for generation in self.generations]
        gaps = sorted(gap for generation in self.generations for gap in _gaps(generation.token_times))
        seconds = sum(generation.seconds for generation in self.generations)
        prompt_tokens = sum(generation.prompt_tokens for generation in self.generations)
        counters = self.counters
        foreseen = decode.foreseeable
        more = {"prefetch_recall": decode.predicted_right / foreseen} if foreseen else {}
        if decode.bytes_uploaded:
            more["misses_uploaded_ahead"] = decode.uploaded_ahead_hits / max(1, decode.misses)
        return {
            "decode_tokens_per_second": len(gaps) / sum(gaps),
            "prefill_tokens_per_second": prompt_tokens / sum(first),
            "time_to_first_token": statistics.median(first),
            **{f"inter_token_p{at}": gaps[min(len(gaps) - 1, len(gaps) * at // 100)] for at in (50, 95, 99)},
            "hit_rate": counters.hit_rate,
            "decode_hit_rate": decode.hit_rate,
            "host_hit_rate": counters.host_hits / max(1, counters.misses),
            "prefetch_on_share": foreseen / max(1, decode.lookups),
            **more,
            "prefetch_precision": decode.prefetch_hits / max(1, decode.prefetched),
            "misses_prefetched": decode.prefetch_hits / max(1, decode.misses),
            "bytes_read_per_token": decode.bytes_read / len(gaps),
            "bytes_wasted_per_token": decode.bytes_wasted / len(gaps),
            "stall_share": counters.stall_seconds / seconds,
        }


class _Passes:
    """Runs all prompts, again and again."""

    def __init__(self, engine: Engine, ids: Sequence[list[int]], request: Request, report: Report) -> None:
        self._engine = engine
        self._ids = ids
        self._request = request
        self._report = report
        self._sampling = Sampling(max_new_tokens=request.new_tokens, temperature=0)
        self._done = 0
        if request.route is not None:
            engine.tap(Route(request.route, engine.plan.needs))

    def warm_up(self) -> Trace | None:
        """A pass from a cold cache, and its routing (None where a trace drives it)."""
        if self._request.route is not None:
            self.run("warm-up")
            return None
        with _recording(self._request.record) as path:
            with recorder_of(self._engine, path) as recorder:
                self._engine.tap(recorder)
                self.run("warm-up", recorder.prompt)
            self._engine.tap(None)
            return read_trace(path)

    def run(self, what: str, announce: Callable[[str], None] = lambda name: None) -> _Trial:
        total = len(self._ids) * (self._request.repeat + 1)
        generations = []
        for prompt, ids in zip(self._request.prompts, self._ids, strict=True):
            self._report(what, self._done / total)
            announce(prompt.name)
            generations.append(self._engine.generate(ids, self._sampling))
            self._done += 1
        return _Trial(generations)


@contextmanager
def _recording(wanted: Path | None) -> Iterator[Path]:
    """Where to record: where it was asked for, or for a while."""
    if wanted is not None:
        yield wanted
        return
    with tempfile.TemporaryDirectory(prefix="moe-local-bench-") as folder:
        yield Path(folder) / "trace.npz"


def recorder_of(engine: Engine, path: Path) -> Recorder:
    """A recorder for a model's routing; give it to `engine.tap`."""
    needs, load_plan = engine.plan.needs, engine.load_plan
    return Recorder(
        path,
        layers=len(needs.experts),
        experts=max(needs.experts),
        top_k=max(needs.top_k),
        meta={
            "model": load_plan.checkpoint.directory.name,
            "architecture": type(load_plan.skeleton).__name__,
            "config_hash": load_plan.config_hash,
            "expert_format": load_plan.expert_format,
        },
    )


def _gaps(times: Sequence[float]) -> list[float]:
    return [after - before for before, after in pairwise(times)]


def summary(trials: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Median and range of each metric over the trials that have it."""
    found = {}
    for name in dict.fromkeys(name for trial in trials for name in trial):
        values = [trial[name] for trial in trials if name in trial]
        spread = {"median": statistics.median(values), "low": min(values), "high": max(values)}
        found[name] = {key: round(value, 6) for key, value in spread.items()}
    return found


def _links(counters: Counters, speeds: Mapping[str, float | None]) -> dict[str, dict[str, float | None]]:
    disk = _link(counters.bytes_read, counters.reading_seconds, speeds["disk"])
    if speeds["upload"] is None:
        return {"disk": disk}
    return {"disk": disk, "upload": _link(counters.bytes_uploaded, counters.uploading_seconds, speeds["upload"])}


def _link(count: int, seconds: float, measured: float | None) -> dict[str, float | None]:
    return {
        "bytes": count,
        "seconds": round(seconds, 4),
        "gb_per_second": round(count / seconds / 1e9, 3) if seconds > 0 else None,
        "measured_gb_per_second": None if measured is None else round(measured, 3),
    }


def _memory(engine: Engine) -> dict[str, Any]:
    plan = engine.plan
    found: dict[str, Any] = {"ram": {"budget": plan.ram, "planned": plan.ram_used, "peak": peak_memory()}}
    if engine.load_plan.accelerator.has_own_memory:
        peak = engine.load_plan.accelerator.peak_memory() + plan.vram_overhead
        found["vram"] = {"budget": plan.vram, "planned": plan.vram_used, "peak": peak}
    return found


def _mask(residents: Sequence[Sequence[int]], experts: Sequence[int]) -> list[list[int]]:
    sets = [set(layer) for layer in residents]
    return [[int(e in held) for e in range(count)] for held, count in zip(sets, experts, strict=True)]


def _timeline(engine: Engine, ids: list[int]) -> dict[str, Any]:
    """The spans of one token in the middle of an answer, in seconds from its beginning."""
    spans: list[Span] = []
    engine.cache.watch(spans)
    try:
        result = engine.generate(ids, Sampling(max_new_tokens=_TIMELINE_TOKENS, temperature=0))
    finally:
        engine.cache.watch(None)
    begin, end = result.token_times[-2:]
    return {
        "seconds": round(end - begin, 7),
        "spans": [
            {**vars(span), "begin": round(span.begin - begin, 7), "end": round(span.end - begin, 7)}
            for span in spans
            if span.begin >= begin and span.end <= end
        ],
    }
