"""Many prompts where memory is short: moe-local together and one at a time, and llama.cpp in parallel, in one run.

    python benchmarks/versus_batch.py STORE MODEL.gguf PROMPTS.jsonl... [--share 50%] [--count 64] [--new-tokens 32]

Store and GGUF file as for `versus_under_memory.py`, which also says what is dropped and limited. PROMPTS are files of
JSON lines with a `prompt`, `question`, `instruction` or `turns`; prompts are taken from them in equal parts. As the
synthetic checkpoint's tokenizer is none, words are hashed into its vocabulary, about 1.3 tokens each. All sides get
the same tokens and write the same number of them, greedily; llama.cpp is watched for one group of sequences and 40
seconds of decoding, and the rest is calculated.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import confined
from versus_under_memory import bytes_read, read_ahead

from moe_local.units import format_size, parse_share

PARALLEL = (16, 64)  # sequences that llama.cpp is given at once
LONGEST = 40.0  # seconds that llama.cpp is watched decoding
CHUNK = 512  # tokens of prompts in one pass
Row = dict[str, float]


def main() -> None:
    given = arguments(__doc__, count=64).parse_args()
    if given.side:
        print(json.dumps(measure(given)))
        return
    with read_ahead(given.read_ahead):
        compare(given)


def arguments(about: str | None, *, count: int) -> argparse.ArgumentParser:
    """Those of a comparison under memory, with so many prompts unless told otherwise."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("prompts", type=Path, nargs="+")
    parser.add_argument("--share", default="50%")
    parser.add_argument("--count", type=int, default=count)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--read-ahead", type=int, default=128, help="KiB, for every disk; 0 leaves it")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--limit", type=int, help=argparse.SUPPRESS)
    return parser


def limit_of(given: argparse.Namespace) -> int:
    """Bytes that each side is held to."""
    return int(given.gguf.stat().st_size * parse_share(given.share))


def take_turns(script: str, given: argparse.Namespace, sides: Sequence[str]) -> dict[str, list[Row]]:
    """Each side's runs of a script, each a process in the limit, in turns."""
    limit = limit_of(given)
    rows: dict[str, list[Row]] = {side: [] for side in sides}
    for _ in range(given.repeat):
        for side in sides:
            done = confined.run([sys.executable, script, *sys.argv[1:], "--side", side, "--limit", str(limit)], limit)
            found: Row = json.loads(done.stdout.splitlines()[-1]) if not done.status else {"speed": 0, "read": 0}
            rows[side].append({**found, "peak": done.peak})
            print(f"{side}: {rows[side][-1]}", file=sys.stderr, flush=True)
    return rows


def compare(given: argparse.Namespace) -> None:
    sides = ["together", "one at a time", *(f"llama.cpp {count} at once" for count in PARALLEL)]
    rows = take_turns(__file__, given, sides)
    lengths = [len(prompt) for prompt in prompts(given.prompts, given.count)]
    span = f"{min(lengths)} to {max(lengths)} tokens, {sum(lengths)} in all"
    print(f"{len(lengths)} prompts of {span}; {format_size(limit_of(given))}")
    print("| | new tokens/s | MB read a token | peak | against one at a time |\n|---|---|---|---|---|")
    alone = median(row["speed"] for row in rows["one at a time"])
    for side, runs in rows.items():
        speed, read = (median(row[name] for row in runs) for name in ("speed", "read"))
        peak = format_size(max(row["peak"] for row in runs))
        print(f"| {side} | {speed:.1f} | {read / 1e6:.0f} | {peak} | {speed / alone:.2f}x |")


def prompts(files: Sequence[Path], count: int) -> list[list[int]]:
    """Token ids of `count` prompts, in equal parts from the files."""
    return [ids(text) for file in files for _, text in zip(range(count // len(files)), _texts(file), strict=False)]


def _texts(file: Path) -> Iterator[str]:
    opened: Any = gzip.open if file.suffix == ".gz" else open
    with opened(file, "rt", encoding="utf-8") as lines:
        for line in lines:
            given = json.loads(line)
            names = ("prompt", "question", "instruction")
            yield given["turns"][0] if "turns" in given else next(given[name] for name in names if name in given)


def ids(text: str) -> list[int]:
    found = []
    for number, word in enumerate(text.split()):
        found.append(zlib.crc32(word.encode()) % 150_000)
        if number % 3 == 0:
            found.append(zlib.crc32(word[::-1].encode()) % 150_000)
    return found


def measure(given: argparse.Namespace) -> Row:
    """New tokens a second, the reading of prompts included, and bytes read for each."""
    asked = prompts(given.prompts, given.count)
    if given.side.startswith("llama.cpp"):
        side: Any = Parallel(given.gguf, given.threads, int(given.side.split()[1]), asked, given.new_tokens)
    else:
        side = Ours(given, asked)
    seconds, read = side.run(asked, given.new_tokens)
    tokens = len(asked) * given.new_tokens
    return {"speed": tokens / seconds, "read": read / tokens}


class Meter:
    """Seconds and bytes read since it was made."""

    def __init__(self) -> None:
        self._began, self._before = perf_counter(), bytes_read()

    @property
    def seconds(self) -> float:
        return perf_counter() - self._began

    @property
    def read(self) -> int:
        return bytes_read() - self._before


class Ours:
    """A store in `limit` bytes."""

    def __init__(self, given: argparse.Namespace, asked: Sequence[Sequence[int]]) -> None:
        import torch

        from moe_local.engine import load
        from moe_local.planning.options import Options

        torch.set_num_threads(given.threads)
        self._together = given.side == "together"
        each = max(map(len, asked)) + given.new_tokens
        sequences = len(asked) if self._together else 1
        options = Options(
            device="cpu", ram=given.limit, context=1024, max_sequences=sequences, tokens_per_sequence=each
        )
        self._engine = load(given.store, options)
        self._engine.model.generation_config.eos_token_id = None

    def run(self, asked: Sequence[Sequence[int]], new: int) -> tuple[float, float]:
        """Seconds, and bytes read."""
        from moe_local.generation.batch import Request
        from moe_local.generation.sampling import Sampling

        meter = Meter()
        greedy = Sampling(max_new_tokens=new, temperature=0)
        if self._together:
            answers = [
                answer.new_tokens for answer in self._engine.batch(Request(prompt, greedy) for prompt in asked)
            ]
        else:
            answers = [self._engine.generate(prompt, greedy).new_tokens for prompt in asked]
        assert answers == [new] * len(asked)
        return meter.seconds, meter.read


class Parallel:
    """llama.cpp with several sequences in a batch, through its C interface."""

    def __init__(self, file: Path, threads: int, parallel: int, asked: Sequence[Sequence[int]], new: int) -> None:
        import llama_cpp

        self.api: Any = llama_cpp
        self._parallel = parallel
        llama_cpp.llama_backend_init()
        model = llama_cpp.llama_model_default_params()
        model.use_extra_bufts = False  # repacked weights are a copy, and do not fit
        self._model = llama_cpp.llama_model_load_from_file(str(file).encode(), model)
        context = llama_cpp.llama_context_default_params()
        context.n_ctx = parallel * (max(map(len, asked)) + new + 8)
        context.n_seq_max = parallel
        context.n_batch = context.n_ubatch = CHUNK
        context.n_threads = context.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(self._model, context)
        self._vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._batch = llama_cpp.llama_batch_init(CHUNK, 0, 1)

    def run(self, asked: Sequence[Sequence[int]], new: int) -> tuple[float, float]:
        """Seconds, and bytes read: of all prompts of the first group and a few tokens, multiplied."""
        group, last = asked[: self._parallel], dict[int, int]()
        meter = Meter()
        waiting = [
            (token, at, number, at == len(prompt) - 1)
            for number, prompt in enumerate(group)
            for at, token in enumerate(prompt)
        ]
        for start in range(0, len(waiting), CHUNK):
            last |= self._decode(waiting[start : start + CHUNK])
        prompt_seconds, prompt_read = meter.seconds, meter.read
        meter = Meter()
        for step in range(new - 1):
            last = self._decode([(token, len(group[n]) + step, n, True) for n, token in last.items()])
            if meter.seconds > LONGEST:
                break
        groups, more = len(asked) / len(group), (new - 1) / (step + 1)
        return groups * (prompt_seconds + more * meter.seconds), groups * (prompt_read + more * meter.read)

    def _decode(self, tokens: Sequence[tuple[int, int, int, bool]]) -> dict[int, int]:
        """Runs (token, position, sequence, whether its logits are wanted); the likeliest next token of those."""
        import numpy as np

        batch = self._batch
        batch.n_tokens = len(tokens)
        for place, (token, position, sequence, wanted) in enumerate(tokens):
            batch.token[place], batch.pos[place] = token, position
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, sequence
            batch.logits[place] = wanted
        if self.api.llama_decode(self._context, batch):
            sys.exit("llama_decode failed")
        found = {}
        for place, (_, _, sequence, wanted) in enumerate(tokens):
            if wanted:
                logits = self.api.llama_get_logits_ith(self._context, place)
                found[sequence] = int(np.ctypeslib.as_array(logits, shape=(self._vocabulary,)).argmax())
        return found


if __name__ == "__main__":
    main()
