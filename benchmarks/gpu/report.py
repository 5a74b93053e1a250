"""The results as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Result = dict[str, Any]
_GIGA = 1e9


def markdown(found: Sequence[Result], scale_prompts: Sequence[int]) -> str:
    """The machine, tables, and what failed and why."""
    parts = [_machine(found), _engines(found, scale_prompts), _peers(found, scale_prompts), _host(found)]
    parts += [_kernels(found, kind) for kind in ("matrix", "experts")]
    parts += [_crossing(found), _failures(found)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _of(found: Sequence[Result], kind: str) -> list[Result]:
    return [result for result in found if result["kind"] == kind]


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    if not rows:
        return ""
    lines = [head, ["---"] * len(head), *[[_cell(value) for value in row] for row in rows]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: object) -> str:
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _machine(found: Sequence[Result]) -> str:
    named = {key: value for result in _of(found, "machine") for key, value in result.items() if value is not None}
    speeds = {key: value for result in _of(found, "links") for key, value in result.items() if value is not None}
    hidden = ("kind", "wall_seconds", "failed")
    lines = [f"- {key}: {value}" for key, value in named.items() if key not in hidden]
    lines += [
        f"- {key}: {value} GB/s" for key, value in speeds.items() if isinstance(value, float) and key not in hidden
    ]
    return "\n".join(lines)


def _engines(found: Sequence[Result], prompts: Sequence[int]) -> str:
    head = [
        "model", "in VRAM", "in RAM", "misses", "tokens/s", "without graphs", "of the limit", "limit by",
        *[f"prefill {n}" for n in prompts],
        "uploaded a token, MB", "read a token, MB", "stalls", "VRAM hits", "RAM hits", "peak VRAM, GB", "budget, GB",
    ]  # fmt: skip
    rows = [
        [
            r["model"], _percent(r["device_share"]), _percent(r["host_share"]), r["misses"],
            r.get("tokens_per_second"), r.get("tokens_per_second_unrecorded"), _percent(r.get("of_limit")),
            r.get("limit_by"),
            *[r.get(f"prefill_{n}_tokens_per_second") for n in prompts],
            _in(r.get("bytes_uploaded_per_token"), 1e6), _in(r.get("bytes_read_per_token"), 1e6),
            _percent(r.get("stall_share")), _percent(r.get("device_hit_rate")), _percent(r.get("host_hit_rate")),
            _in(r.get("vram_peak"), _GIGA), _in(r.get("vram_budget"), _GIGA),
        ]
        for r in _of(found, "engine")
        if "tokens_per_second" in r
    ]  # fmt: skip
    return _table(head, rows)


def _peers(found: Sequence[Result], prompts: Sequence[int]) -> str:
    head = ["model", "peer", "layers", "tokens/s", *[f"prefill {n}" for n in prompts]]
    return _table(head, [
        [
            r["model"], r["peer"], r["layers"], r["tokens_per_second"],
            *[r.get(f"prefill_{n}_tokens_per_second") for n in prompts],
        ]
        for r in _of(found, "peer")
        if "tokens_per_second" in r
    ])  # fmt: skip


def _host(found: Sequence[Result]) -> str:
    names = (
        "layer_ms", "profiled_layer_ms", "host_layer_ms", "kernels_layer_ms", "launches_per_layer", "syncs_per_layer"
    )  # fmt: skip
    head = ["model, resident", "graphs", *[name.replace("_", " ") for name in names]]
    rows = [
        [r["model"], graphs, *[r.get(prefix + name) for name in names]]
        for r in _of(found, "engine")
        for graphs, prefix in (("without", ""), ("with", "recorded_"))
        if f"{prefix}layer_ms" in r
    ]
    return _table(head, rows)


def _kernels(found: Sequence[Result], kind: str) -> str:
    """A row for each kernel of a format and number of rows."""
    rows = []
    for result in _of(found, kind):
        for key, value in result.items():
            if key.endswith("_us"):
                name, _, count = key.removesuffix("_us").rpartition("_")
                speeds = [result.get(f"{name}_{count}_{unit}") for unit in ("gb_per_second", "gflops")]
                label = result.get("kernel", "triton") if name in ("ours", "experts") else name
                rows.append([result["format"], label, count, value, *speeds])
    return _table([f"{kind} in", "kernel", "rows", "us", "GB/s", "GFLOP/s"], rows)


def _crossing(found: Sequence[Result]) -> str:
    rows = []
    for result in _of(found, "crossing"):
        for key, value in result.items():
            what, *rest = key.split("_")
            if rest and rest[0] == "vector":
                tiles = result.get(key.replace("vector", "tiles"))
                rows.append([result["format"], what, rest[1], value, tiles])
    return _table(["format", "of", "rows", "vectors, us", "tiles, us"], rows)


def _failures(found: Sequence[Result]) -> str:
    """Every measurement that did not come to its end, and why."""
    hidden = ("kind", "model", "format", "device_share", "host_share", "misses", "peer")
    failed = [result for result in found if result["failed"]]
    named = [" ".join(str(result[key]) for key in hidden if key in result) for result in failed]
    return "\n".join(f"- {name}: {result['failed']}" for name, result in zip(named, failed, strict=True))


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{share:.1%}".replace(".0%", "%")


def _in(value: float | None, unit: float) -> float | None:
    return None if value is None else round(value / unit, 2)
