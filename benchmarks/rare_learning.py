"""Hit rates of the device tier where it learns from one token in so many, as with `--misses zero-copy`.

python -m benchmarks.rare_learning trace.npz
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from moe_local.bench.trace import Trace, read_trace
from moe_local.experts.residency import LayerResidency
from moe_local.policies import DEFAULT_POLICY, POLICIES

SHARES = (0.25, 0.5)  # of a layer's experts that are kept
EACH = (1, 2, 4, 8, 16)  # tokens of which one is learnt from


def hit_rate(trace: Trace, layer: int, share: float, each: int) -> float:
    """Of a layer's choices, token by token."""
    residency = LayerResidency(trace.experts, max(1, round(trace.experts * share)), POLICIES.named(DEFAULT_POLICY))
    hits = 0
    for token, chosen in enumerate(trace.ids[:, layer].tolist()):
        hits += sum(expert in residency for expert in chosen)
        if token % each == 0:
            residency.access(chosen)
    return hits / (trace.tokens * trace.top_k)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("traces", nargs="+", type=Path, help="what `moe-local bench --record` wrote")
    parser.add_argument("--prompts", type=int, default=60, help="the first so many of a trace")
    parser.add_argument("--layers", type=int, default=4, help="so many, spread over the model")
    given = parser.parse_args()
    print(f"| trace | kept | {' | '.join(f'1 in {each}' for each in EACH)} |\n|{'---|' * (len(EACH) + 2)}")
    for file in given.traces:
        trace = read_trace(file).first(given.prompts)
        layers = np.linspace(0, trace.layers - 1, given.layers).round().astype(int).tolist()
        for share in SHARES:
            rates = [np.mean([hit_rate(trace, layer, share, each) for layer in layers]) for each in EACH]
            print(f"| {file.name} | {share:.0%} | {' | '.join(f'{rate:.3f}' for rate in rates)} |", flush=True)


if __name__ == "__main__":
    main()
