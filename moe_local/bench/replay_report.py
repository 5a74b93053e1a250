"""From a question about a trace to the bench's report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from moe_local.bench.predictor_accuracy import choose as choose_predictors
from moe_local.bench.predictor_accuracy import foresee
from moe_local.bench.replay import SCOPES, Replay, capacity_slots, choose, possible, replay
from moe_local.bench.replay_speed import Forecast
from moe_local.bench.report import head
from moe_local.bench.routing_stats import routing
from moe_local.bench.trace import Trace
from moe_local.errors import MoeLocalError


@dataclass(frozen=True)
class Question:
    """What a replay is to tell."""

    capacities: Sequence[float]  # shares of the experts in the device tier
    policies: Sequence[str]
    scopes: Sequence[str]
    host: float | None = None  # share of the experts in a host tier
    predictors: Sequence[str] = ()  # of the next layer's experts: how right they would have been
    profile: str | None = None  # a machine to predict for
    model: str | None = None  # whose sizes to predict with; the trace's if None

    def __post_init__(self) -> None:
        for scope in self.scopes:
            if scope not in SCOPES:
                raise MoeLocalError(f"--scope {scope} is unknown", remedy="use layer, global or both")


def replay_report(
    trace: Trace, question: Question, version: str, report: Callable[[str, float], None]
) -> dict[str, Any]:
    """Capacities below one token's experts are left out, and named.

    Raises MoeLocalError where all of them are, and for an unknown policy or machine.
    """
    forecast = None if question.profile is None else Forecast.of(question.profile, question.model or trace.model)
    policies = choose(question.policies)
    predictors = choose_predictors(question.predictors, trace)
    kept, left_out = possible(trace, question.capacities)
    if not kept:
        capacity_slots(trace, question.capacities[0])  # says why
    host = None if question.host is None else capacity_slots(trace, question.host)
    found = replay(
        trace, policies, [slots for _, slots in kept], scopes=question.scopes, host_slots=host, report=report
    )
    return {
        **head("replay", version),
        "model": {
            "name": trace.model,
            "layers": trace.layers,
            "experts": [trace.experts] * trace.layers,
            "top_k": trace.top_k,
            "record_bytes": None if forecast is None else forecast.record_bytes,
            "format": None if forecast is None else forecast.format,
        },
        "routing": routing(trace),
        "replay": {
            "tokens": trace.tokens,
            "capacities": [float(share) for share, _ in kept],
            "left_out": [{"capacity": float(share), "why": why} for share, why in left_out.items()],
            "results": [_result(one, trace, forecast) for one in found],
            "predictions": [vars(one) for one in foresee(trace, predictors, report)],
        },
    }


def _result(one: Replay, trace: Trace, forecast: Forecast | None) -> dict[str, Any]:
    return {
        "policy": one.policy,
        "scope": one.scope,
        "capacity": sum(one.slots) / (trace.experts * trace.layers),
        "slots": sum(one.slots),
        "host_slots": None if one.host_slots is None else sum(one.host_slots),
        "hit_rate": round(one.hit_rate, 6),
        "layer_hit_rates": [round(float(rate), 6) for rate in one.layer_hit_rates],
        "misses_per_token": round(one.decode.misses, 4),
        "host_misses_per_token": None if one.host_slots is None else round(one.decode.host_misses, 4),
        "bytes_per_token": None if forecast is None else round(one.decode.misses * forecast.record_bytes),
        "tokens_per_second": None if forecast is None else forecast.tokens_per_second(one),
        "profile": None if forecast is None else forecast.machine.name,
    }
