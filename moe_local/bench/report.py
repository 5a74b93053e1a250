"""The bench's report: one JSON object with a version, the same for live runs and replays, and tables from it."""

from __future__ import annotations

import csv
import io
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

from moe_local.checkpoint.json_file import parse_json
from moe_local.checkpoint.regular import read_regular
from moe_local.errors import MoeLocalError, StorageError, first_line
from moe_local.files import atomic_write

_MOST = 48 << 20  # bytes of a report
SCHEMA = "moe-local-bench/1"
_LIBRARIES = ("torch", "transformers", "numpy")  # whose versions change figures


def machine() -> dict[str, Any]:
    """Where a report was made."""
    from moe_local.memory.accelerator import cpu_capability, gpus
    from moe_local.memory.limits import cores, memory_limit

    return {
        "platform": platform.platform(),
        "cores": cores(),
        "cpu": cpu_capability(),
        "gpus": [gpu.name for gpu in gpus()],
        "memory": memory_limit(),
    }


def head(kind: str, version: str) -> dict[str, Any]:
    """What every report begins with; `version` is this program's."""
    return {
        "schema": SCHEMA,
        "kind": kind,
        "version": version,
        "versions": {"python": platform.python_version(), **{name: installed(name) for name in _LIBRARIES}},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
    }


def live_report(version: str, model: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The report of runs of one model; `version` is this program's."""
    return {**head("live", version), "model": dict(model), "runs": list(runs)}


def read_report(path: Path) -> dict[str, Any]:
    """Raises MoeLocalError for anything but a report of this schema."""
    try:
        found = parse_json(read_regular(path, _MOST))
    except OSError as error:
        raise MoeLocalError(f"cannot read {path}: {error.strerror}", remedy="check the name") from error
    except ValueError as error:
        raise MoeLocalError(f"{path} is not JSON ({error})", remedy="give what `bench --json` printed") from error
    schema = found.get("schema") if isinstance(found, dict) else None
    if schema != SCHEMA or found.get("kind") not in ("live", "replay"):
        raise MoeLocalError(f"{path} is not a report of schema {SCHEMA}", remedy="give what `bench --json` printed")
    try:
        lines(found)
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise MoeLocalError(
            f"{path} is not a whole report ({first_line(error)})", remedy="give what `bench --json` printed"
        ) from error
    return dict(found)


def lines(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A flat line for each run or replay, as in `--csv`."""
    about = _about(report)
    if report["kind"] == "routing":
        return [{**about, **_flat_hits(one)} for one in report["strategies"]["results"]]
    if report["kind"] == "replay":
        return [
            {
                **about,
                **{key: value for key, value in result.items() if not isinstance(value, list)},
                **_range("tokens_per_second", result["tokens_per_second"]),
            }
            for result in report["replay"]["results"]
        ]
    return [
        {
            **about,
            **run["config"],
            **{
                f"{name}_{key}": value
                for name, spread in run.get("summary", {}).items()
                for key, value in spread.items()
            },
            "peak_ram": run.get("memory", {}).get("ram", {}).get("peak"),
            "error": run.get("error"),
        }
        for run in report["runs"]
    ]


def _flat_hits(strategy: Mapping[str, Any]) -> dict[str, Any]:
    hits = {f"hit_rate_{hit['policy']}_{hit['capacity']:.4g}": hit["hit_rate"] for hit in strategy["hits"]}
    return {**{name: value for name, value in strategy.items() if name != "hits"}, **hits}


def _about(report: Mapping[str, Any]) -> dict[str, Any]:
    """What makes a line mean something without its report."""
    model, machine = report["model"], report["machine"]
    gpus = machine["gpus"]
    return {
        "model": model["name"],
        "model_format": model["format"],
        "prompts_hash": (model.get("workload") or {}).get("prompts_hash"),
        "hardware": ", ".join([f"{machine['cores']} cores", machine["cpu"], *gpus]),
        "version": report["version"],
        "date": report.get("date"),
    }


def _range(name: str, pair: Sequence[float] | None) -> dict[str, float]:
    return {} if pair is None else {f"{name}_low": pair[0], f"{name}_high": pair[1]}


def write_csv(report: Mapping[str, Any], path: Path) -> None:
    """Raises StorageError when it cannot be written."""
    table = lines(report)
    titles = list(dict.fromkeys(title for row in table for title in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, titles, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    write_text(path, text.getvalue())


def write_text(path: Path, text: str) -> None:
    """A file that appears whole or not at all. Raises StorageError when it cannot be written."""
    try:
        with atomic_write(path) as file:
            file.write(text.encode())
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}", remedy="choose another place") from error
