"""The server's own routes: health, metrics, what the page shows, and budgets that can be changed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request
from pydantic import Field, field_validator
from starlette.responses import PlainTextResponse, Response

from moe_local.engine import Engine
from moe_local.serve.errors import PERMISSION, RefusedError
from moe_local.serve.facts import facts
from moe_local.serve.fields import Strict
from moe_local.serve.live import INTERVAL, LiveExperts
from moe_local.serve.metrics import CONTENT_TYPE, Metrics
from moe_local.serve.replies import HERE, STREAMS, EventStream, Reply, event
from moe_local.serve.service import Service
from moe_local.serve.settings import Names
from moe_local.units import parse_budget

_WATCHED = 24 * 3600.0  # seconds that one may look at a time
_MOST_WATCHERS = 8


class Budgets(Strict):
    """Other budgets, like "12GiB", or "50%" of those that there are; what is not said stays."""

    ram: str | int | None = Field(None, description="Of the whole process.")
    vram: str | int | None = Field(None, description="Of the device.")

    @field_validator("ram", "vram")
    @classmethod
    def _positive(cls, value: str | int | None) -> str | int | None:
        if isinstance(value, int) and not 0 < value < 1 << 60:
            raise ValueError("is not a number of bytes")
        return value


def add_own(app: FastAPI, service: Service, names: Names, metrics: Metrics) -> None:
    """Adds them."""
    watching = [0]

    @app.get("/health", responses={503: {"description": "The model is not there yet, or the server ends."}})
    async def health() -> Response:
        stage, done = service.stage
        told = {"status": service.state, "stage": stage, "progress": round(done, 3)}
        return Reply(told, status_code=200 if service.is_ready else 503)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def prometheus() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    @app.get("/api/facts")
    async def model_facts() -> Response:
        return Reply(facts(service.engine, names.name, service.batch.turns.places))

    @app.get("/api/live", responses=STREAMS)
    async def live(request: Request) -> Response:
        experts = service.live  # refused before anything is sent where it is not there
        if watching[0] >= _MOST_WATCHERS:
            raise RefusedError(429, "enough others look at the experts already", retry_after=10)
        watching[0] += 1

        async def leave() -> None:
            watching[0] -= 1

        return EventStream(_frames(service, experts), leave, _WATCHED, HERE)

    @app.post("/budgets")
    async def budgets(body: Budgets) -> Response:
        if service.settings.api_key is None:
            raise RefusedError(403, "whoever has the key may change budgets: begin with --api-key", kind=PERMISSION)
        return Reply(await service.call(lambda engine: _resized(engine, body)))


async def _frames(service: Service, experts: LiveExperts) -> AsyncIterator[str]:
    with experts.watch() as frame:
        while service.is_ready:
            yield event(await asyncio.to_thread(frame))
            await asyncio.sleep(INTERVAL)


def _resized(engine: Engine, asked: Budgets) -> dict[str, Any]:
    """Raises MoeLocalError for budgets that cannot be."""
    former = engine.plan
    ram = None if asked.ram is None else parse_budget(str(asked.ram), lambda: former.ram)
    vram = None if asked.vram is None else parse_budget(str(asked.vram), lambda: former.vram or 0)
    engine.resize(ram=ram, vram=vram)
    plan = engine.plan
    return {
        "ram": plan.ram,
        "vram": plan.vram,
        "experts_in_device_tier": plan.device_experts,
        "experts_in_host_tier": sum(plan.host_slots or ()),
        "experts": plan.needs.all_experts,
    }
