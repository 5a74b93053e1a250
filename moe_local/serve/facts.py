"""What the server tells of the model, for people to read."""

from __future__ import annotations

from typing import Any

from moe_local.engine import Engine
from moe_local.units import format_size


def facts(engine: Engine, name: str, batch_places: int) -> dict[str, Any]:
    """By words of people; nothing of it is about other files of this machine."""
    load_plan, plan = engine.load_plan, engine.plan
    needs = plan.needs
    experts = sorted(set(needs.experts))
    found: dict[str, Any] = {
        "model": name,
        "architecture": type(engine.model).__name__,
        "weights": ", ".join(sorted({str(matrix.encoding) for matrix in load_plan.catalog.matrices()})),
        "context": load_plan.context,
        "MoE layers": len(needs.experts),
        "experts a layer": " or ".join(map(str, experts)),
        "experts a token": " or ".join(map(str, sorted(set(needs.top_k)))),
        "size of the experts": format_size(load_plan.catalog.expert_bytes),
        "dense weights": format_size(needs.dense),
        "experts in fast memory": f"{plan.device_experts} of {needs.all_experts} ({plan.share:.0%})",
        "RAM budget": format_size(plan.ram),
    }
    if plan.vram is not None:
        found["VRAM budget"] = format_size(plan.vram)
        found["experts in RAM"] = sum(plan.host_slots or ())
    found["answers at once"] = batch_places
    found["tokens of all caches"] = load_plan.kv_tokens
    return found
