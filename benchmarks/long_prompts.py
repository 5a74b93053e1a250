"""A long prompt in passes of 512 tokens, and in those that the budget allows: tokens/s, bytes read, peak memory.

    python benchmarks/long_prompts.py MODEL --ram 2.31GiB 1.6GiB [--tokens 4096] [--repeat 3]

Both take turns in one process, in a memory cgroup of a tenth more than the budget that begins with a dropped page
cache: the peak tells whether the budget is kept. After the prompt 32 tokens of an answer are decoded, whose hits say
how warm it left the cache. Medians as a Markdown table. Needs Linux and root (see `confined.py`).
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from dataclasses import dataclass
from statistics import median
from typing import Any

import confined

from moe_local import Options, load
from moe_local.engine import Engine
from moe_local.generation.sampling import Sampling
from moe_local.planning.formulas import PREFILL_CHUNK
from moe_local.units import format_size, parse_size

DECODED = 33  # the first follows from the prompt's pass
COLUMNS = ("RAM", "passes of", "prefill, tokens/s", "GB read", "then decode, tokens/s", "its hits", "peak RAM")


@dataclass(frozen=True)
class Run:
    """One prompt, and the tokens after it."""

    prefill: float  # tokens/s
    read: int  # bytes, in the prompt
    decode: float  # tokens/s
    hit_rate: float  # of the tokens after the prompt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--ram", nargs="+", default=["2.31GiB", "1.6GiB"])
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--held", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.held:
        print(json.dumps(_measure(given.model, parse_size(given.ram[0]), given.tokens, given.repeat)))
        return
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for budget in given.ram:
        more = ["--tokens", str(given.tokens), "--repeat", str(given.repeat), "--held"]
        command = [sys.executable, __file__, given.model, "--ram", budget, *more]
        done = confined.run(command, parse_size(budget) * 11 // 10)
        if done.status:
            raise SystemExit(f"{' '.join(command)} ended with {done.status}")
        for chunk, runs in json.loads(done.stdout.splitlines()[-1]).items():
            print(
                f"| {budget} | {chunk} | {_row([Run(**run) for run in runs])} | {format_size(done.peak)} |",
                flush=True,
            )


def _row(runs: list[Run]) -> str:
    return " | ".join(
        (
            f"{median(run.prefill for run in runs):.0f}",
            f"{median(run.read for run in runs) / 1e9:.1f}",
            f"{median(run.decode for run in runs):.1f}",
            f"{median(run.hit_rate for run in runs):.1%}",
        )
    )


def _measure(model: str, budget: int, tokens: int, repeat: int) -> dict[int, list[dict[str, Any]]]:
    options = Options(device="cpu", ram=budget, context=tokens + 2 * DECODED)
    with load(model, options) as engine:
        vocabulary = engine.model.config.get_text_config().vocab_size
        random.seed(0)
        ids = [random.randrange(vocabulary) for _ in range(tokens)]
        chunks = sorted({PREFILL_CHUNK, engine.load_plan.prefill_chunk})
        _run(engine, ids, PREFILL_CHUNK)  # as warm as the others find it
        runs: dict[int, list[dict[str, Any]]] = {chunk: [] for chunk in chunks}
        for _ in range(repeat):
            for chunk in chunks:
                runs[chunk].append(vars(_run(engine, ids, chunk)))
        return runs


def _run(engine: Engine, ids: list[int], chunk: int) -> Run:
    """A prompt, and an answer to it."""
    engine.generator.prefill_chunk = chunk
    made = engine.generator.generate(ids, Sampling(max_new_tokens=DECODED, temperature=0))
    read = (made.counters - made.decode).bytes_read
    return Run(len(ids) / made.time_to_first_token, read, made.tokens_per_second, made.decode.hit_rate)


if __name__ == "__main__":
    main()
