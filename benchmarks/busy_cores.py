"""Decoding on idle cores and beside busy ones, by how long OpenMP's threads spin while they wait.

    python benchmarks/busy_cores.py [MODEL] [--spins 300000,10000,1000,0] [--rounds 5] [--busy 2]

Each figure is a process of its own, in turn, idle and beside as many endless loops as `--busy` says: medians over the
rounds, in tokens/s, and as shares of what 300000, libgomp's own count, gives on idle cores. Linux.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

LIBGOMP = "300000"
ASK = ["generate", "-p", "Tell me about the sea.", "-n", "64", "--temperature", "0", "--json", "--prefetch", "off"]


@contextmanager
def busy(loops: int) -> Iterator[None]:
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(loops)]
    try:
        yield
    finally:
        for each in running:
            each.kill()
            each.wait()


def speed(model: list[str], spins: str) -> float:
    """Tokens/s of one run."""
    command = [sys.executable, "-m", "moe_local.cli.main", *ASK[:1], *model, *ASK[1:]]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "GOMP_SPINCOUNT": spins})
    done.check_returncode()
    return float(json.loads(done.stdout)["tokens_per_second"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--spins", default="300000,100000,30000,10000,3000,1000,0")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--busy", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    model = [] if given.model is None else [given.model]
    spins = given.spins.split(",")
    found: dict[tuple[str, int], list[float]] = {(each, loops): [] for each in spins for loops in (0, given.busy)}
    speed(model, LIBGOMP)  # what is read or made on first use
    for number in range(given.rounds):
        for each, loops in found:
            with busy(loops):
                found[each, loops].append(speed(model, each))
        print(f"round {number + 1}:", {f"{s}/{b}": round(v[-1], 1) for (s, b), v in found.items()}, file=sys.stderr)
    most = statistics.median(found[spins[0], 0])
    print(f"| spins | idle cores, tokens/s | | beside {given.busy} busy loops | |\n|---|---|---|---|---|")
    for each in spins:
        alone, beside = (statistics.median(found[each, loops]) for loops in (0, given.busy))
        print(f"| {each} | {alone:.1f} | {alone / most:.0%} | {beside:.1f} | {beside / alone:.0%} of idle |")


if __name__ == "__main__":
    main()
