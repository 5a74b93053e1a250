"""Decode and prefill where memory is short: moe-local, llama.cpp and accelerate on the same weights, in one run.

    pip install '.[peers]'                                     # llama-cpp-python, built from its sdist
    python benchmarks/make_checkpoint.py CHECKPOINT
    moe-local pack CHECKPOINT -o STORE --format int4 --dense-format int4
    python benchmarks/versus_llama_cpp.py convert CHECKPOINT MODEL.gguf
    python benchmarks/versus_under_memory.py STORE MODEL.gguf [--checkpoint CHECKPOINT] [--share 100% 75% 50% 35%]

Each measurement is a process of its own in a memory cgroup of a share of the GGUF file's size, begun with a dropped
page cache; sides take turns, medians are printed. llama.cpp maps its file, with weights repacked and not; the disk's
read-ahead, which changes what it reads, is set for the run (`--read-ahead`, KiB) and put back. With `--checkpoint`,
accelerate's disk offload runs too, once a share. The limit is what the disk's own speed, measured in the same
process, and the speed with everything in RAM would allow: the longer of reading what was missed and of computing.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import confined
from versus_llama_cpp import WARM, Forward, LlamaCpp, MoeLocal, tokens

from moe_local.units import format_size, parse_share

SIDES = ("moe-local", "llama.cpp", "llama.cpp repacked", "accelerate")
LONGEST = 25.0  # seconds of decoding
DECODED = 64  # tokens
COLUMNS = ("RAM", "", "decode t/s", "MB read a token", "prefill t/s", "peak", "of the limit")
Row = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--share", nargs="+", default=["100%", "75%", "50%", "35%"])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--read-ahead", type=int, default=128, help="KiB, for every disk; 0 leaves it")
    parser.add_argument("--side", help=argparse.SUPPRESS)  # a child: this side alone
    parser.add_argument("--limit", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        print(json.dumps(measure(given)))
        return
    with read_ahead(given.read_ahead):
        compare(given)


def compare(given: argparse.Namespace) -> None:
    size = given.gguf.stat().st_size
    in_ram = _middle([_child(given, "moe-local", None) for _ in range(given.repeat)])
    print(f"moe-local, all in RAM: {in_ram['decode']:.1f} tokens/s; the file has {format_size(size)}")
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for share in given.share:
        limit = int(size * parse_share(share))
        rows: dict[str, list[Row]] = {}
        for turn in range(given.repeat):
            for side in SIDES[:3] if turn or not given.checkpoint else SIDES:
                rows.setdefault(side, []).append(_child(given, side, limit))
                print(f"{share} {side}: {rows[side][-1]}", file=sys.stderr, flush=True)
        for side, runs in rows.items():
            print(f"| {share}, {format_size(limit)} | {side} | {_cells(_middle(runs), in_ram['decode'])} |")
        theirs = max(_middle(rows[side])["decode"] for side in SIDES[1:3])
        best = max(_middle(rows[side])["prefill"] for side in SIDES[1:3])
        ours = _middle(rows["moe-local"])
        print(f"| | ratio | {_ratio(ours['decode'], theirs)} | | {_ratio(ours['prefill'], best)} | | |", flush=True)


def _ratio(one: float, other: float) -> str:
    return f"{one / other:.1f}x" if other else "-"


def _cells(row: Row, in_ram: float) -> str:
    if not row["decode"]:
        return "killed, or refused | | | |"
    limit = 1 / max(row["read"] / row["disk"], 1 / in_ram) if row.get("disk") else 0
    share = f"{row['decode'] / limit:.0%} of {limit:.1f}" if limit else ""
    peak = format_size(row["peak"])
    return f"{row['decode']:.2f} | {row['read'] / 1e6:.0f} | {row['prefill']:.0f} | {peak} | {share}"


def _middle(rows: Sequence[Row]) -> Row:
    return {name: median(row.get(name, 0.0) for row in rows) for name in rows[0]}


def _child(given: argparse.Namespace, side: str, limit: int | None) -> Row:
    command = [sys.executable, __file__, str(given.store), str(given.gguf), "--threads", str(given.threads)]
    command += ["--side", side]
    command += ["--checkpoint", str(given.checkpoint)] if given.checkpoint else []
    done = confined.run([*command, *(["--limit", str(limit)] if limit else [])], limit)
    if done.status:
        return {"decode": 0.0, "read": 0.0, "prefill": 0.0, "disk": 0.0, "peak": 0.0}
    found: Row = json.loads(done.stdout.splitlines()[-1])
    return {**found, "peak": done.peak}


def measure(given: argparse.Namespace) -> Row:
    """One side: the prefill of 512 tokens, then tokens decoded one by one after 32 to warm up."""
    side = open_side(given)
    began = perf_counter()
    prefill = side.prefill()
    if perf_counter() - began < LONGEST:
        prefill = side.prefill()  # the first one begins with nothing in memory
    step = side.start(tokens(WARM))
    _timed(step, tokens(DECODED, seed=5))
    before = bytes_read()
    count, seconds = _timed(step, tokens(DECODED, seed=11))
    read = (bytes_read() - before) / count
    disk = disk_speed(side) if isinstance(side, MoeLocal) else 0.0
    side.close()
    return {"decode": count / seconds, "read": read, "prefill": prefill, "disk": disk}


def disk_speed(side: MoeLocal) -> float:
    """Bytes a second of reading experts in random order."""
    from moe_local.bench.links import measure_disk  # brings in torch, which the others' memory is not to pay for

    return measure_disk(side.engine) * 1e9


def open_side(given: argparse.Namespace) -> Any:
    if given.side == "moe-local":
        return MoeLocal(given.store, given.threads, ram=given.limit)
    if given.side == "accelerate":
        return Accelerate(given.checkpoint, given.threads)
    return LlamaCpp(given.gguf, given.threads, repack=given.side.endswith("repacked"))


def _timed(step: Callable[[int], None], ids: list[int]) -> tuple[int, float]:
    """How many of the tokens were decoded before the time was up, and the seconds."""
    began = perf_counter()
    for done, token in enumerate(ids, start=1):
        step(token)
        if perf_counter() - began > LONGEST or done == len(ids):
            return done, perf_counter() - began
    raise ValueError("no tokens to decode")


def bytes_read() -> int:
    """What this process made the disk read, pages that were faulted in included."""
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(lines["read_bytes"])


class Accelerate(Forward):
    """transformers in bf16 with everything offloaded to the disk by accelerate."""

    def __init__(self, checkpoint: Path, threads: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(threads)
        self._folder = tempfile.TemporaryDirectory(dir=checkpoint.parent)
        self.model = AutoModelForCausalLM.from_pretrained(
            checkpoint, device_map={"": "disk"}, offload_folder=self._folder.name, dtype=torch.bfloat16
        )

    def close(self) -> None:
        self._folder.cleanup()


@contextmanager
def read_ahead(kibibytes: int) -> Iterator[None]:
    """Every disk's read-ahead, as it was afterwards."""
    files = list(Path("/sys/block").glob("*/queue/read_ahead_kb")) if kibibytes else []
    former = [file.read_text() for file in files]
    try:
        for file in files:
            file.write_text(str(kibibytes))
        yield
    finally:
        for file, value in zip(files, former, strict=True):
            file.write_text(value)


if __name__ == "__main__":
    main()
