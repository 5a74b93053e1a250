"""How fast a checkpoint decodes under different RAM budgets, each run in a memory cgroup of that size.

    python benchmarks/memory_sweep.py MODEL --ram 4GiB 6GiB 8GiB 12GiB 20GiB [--repeat 3]

Each run is a fresh process that begins with a dropped page cache; budgets take turns, so that drifts of the machine
hit all alike; medians are printed as a Markdown table. Needs Linux and root (see
`confined.py`).
"""

from __future__ import annotations

import argparse
import json
import sys
from statistics import median
from typing import Any

import confined

from moe_local.units import format_size, parse_size

PROMPT = "The quick brown fox jumps over the lazy dog and then"
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
    arguments = ("generate", "--no-pack", model, "--ram", budget, "-p", PROMPT, "-n", str(new_tokens), "--json")
    result: dict[str, Any] = json.loads(_command(*arguments, limit=parse_size(budget)))
    if result["peak_memory"] > parse_size(budget):
        raise SystemExit(f"over the budget of {budget}: {result['peak_memory']} bytes")
    return result


def _command(*arguments: str, limit: int | None = None) -> str:
    """What `moe-local` prints."""
    done = confined.run([sys.executable, "-m", "moe_local.cli.main", *arguments], limit)
    if done.status:
        raise SystemExit(f"moe-local {' '.join(arguments)} ended with {done.status}")
    return done.stdout


if __name__ == "__main__":
    main()
