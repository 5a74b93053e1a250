"""How fast a checkpoint decodes under different RAM budgets, each run in a memory cgroup of that size.

    python benchmarks/memory_sweep.py MODEL --ram 4GiB 6GiB 8GiB 12GiB 20GiB [--repeat 3]

Each run is a fresh process that begins with a dropped page cache; budgets take turns, so that drifts of the machine
hit all alike; medians are printed as a Markdown table. Needs Linux and root (for cgroups, version 1 or 2, and for
dropping the page cache).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

from moe_local.config import format_size, parse_size

PROMPT = "The quick brown fox jumps over the lazy dog and then"
V1, V2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
COLUMNS = (
    "RAM budget",
    "experts that fit",
    "tokens/s",
    "MB read a token",
    "hits",
    "stall share",
    "first token, s",
    "load, s",
    "peak RAM",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--ram", nargs="+", default=["4GiB", "6GiB", "8GiB", "12GiB", "20GiB"])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--new-tokens", type=int, default=64)
    arguments = parser.parse_args()
    runs: dict[str, list[dict[str, Any]]] = {budget: [] for budget in arguments.ram}
    for _ in range(arguments.repeat):
        for budget in arguments.ram:
            runs[budget].append(_run(arguments.model, budget, arguments.new_tokens))
            print(f"{budget}: {json.dumps(runs[budget][-1])}", file=sys.stderr, flush=True)
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for budget, results in runs.items():
        print(f"| {budget} | {_row(arguments.model, budget, results)} |")


def _row(model: str, budget: str, runs: list[dict[str, Any]]) -> str:
    def middle(name: str) -> float:
        return median(run[name] for run in runs)

    plan = json.loads(_command("inspect", model, "--ram", budget, "--json"))
    stall = median(run["stall_seconds"] / run["seconds"] for run in runs)
    return " | ".join(
        (
            f"{plan['share_of_experts']:.0%}",
            f"{middle('tokens_per_second'):.1f}",
            f"{middle('bytes_read_per_token') / 1e6:.0f}",
            f"{middle('hit_rate'):.0%}",
            f"{stall:.0%}",
            f"{middle('time_to_first_token'):.1f}",
            f"{middle('load_seconds'):.1f}",
            format_size(max(run["peak_memory"] for run in runs)),
        )
    )


def _run(model: str, budget: str, new_tokens: int) -> dict[str, Any]:
    group = _make_group(parse_size(budget))
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")
    try:
        arguments = ("generate", "--no-pack", model, "--ram", budget, "-p", PROMPT, "-n", str(new_tokens), "--json")
        result: dict[str, Any] = json.loads(_command(*arguments, group=group))
    finally:
        with suppress(OSError):
            group.rmdir()
    if result["peak_memory"] > parse_size(budget):
        raise SystemExit(f"over the budget of {budget}: {result['peak_memory']} bytes")
    return result


def _make_group(limit: int) -> Path:
    root, file = (V1, "memory.limit_in_bytes") if V1.is_dir() else (V2, "memory.max")
    group = root / f"memory-sweep-{os.getpid()}"
    group.mkdir(exist_ok=True)
    (group / file).write_text(str(limit))
    return group


def _command(*arguments: str, group: Path | None = None) -> str:
    """What `moe-local` prints, run inside a control group from its first instruction on."""

    def join() -> None:
        if group is not None:
            (group / "cgroup.procs").write_text(str(os.getpid()))

    command = [sys.executable, "-m", "moe_local.cli.main", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, preexec_fn=join).stdout


if __name__ == "__main__":
    main()
