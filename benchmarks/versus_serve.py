"""Clients of a server where memory is short: `moe-local serve` over HTTP, `batch`, and llama.cpp, in one run.

    python benchmarks/versus_serve.py STORE MODEL.gguf PROMPTS.jsonl... [--share 50%] [--clients 16] [--count 48]

Arguments as for `versus_batch.py`, which says where prompts come from and what is limited. Each client asks for its
next answer once it has the last; the server, and the clients with it, run in the limit. llama.cpp is given the same
tokens through its C interface: one request at a time, as llama-cpp-python's server answers, and all clients at once,
as its own server does. With --apart moe-local runs without passes in step as well. A prompt of 2,000 tokens is then
asked twice: the time to its first token, and to its second.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from statistics import median
from time import perf_counter
from typing import Any

from versus_batch import Meter, Parallel, Row, arguments, limit_of, prompts, take_turns
from versus_under_memory import read_ahead

from moe_local.units import format_size

LONG = 2000  # tokens
OURS = ("serve", "batch")
APART = ", passes apart"  # prompts are not read in step with others' next tokens


def main() -> None:
    parser = arguments(__doc__, count=48)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--apart", action="store_true", help="also what it would be without passes in step")
    given = parser.parse_args()
    if given.side:
        print(json.dumps(measure(given)))
        return
    with read_ahead(given.read_ahead):
        compare(given)


def compare(given: argparse.Namespace) -> None:
    apart = [f"{side}{APART}" for side in OURS] if given.apart else []
    sides = [*OURS, *apart, "llama.cpp 1 at once", f"llama.cpp {given.clients} at once"]
    rows = take_turns(__file__, given, sides)
    asked = prompts(given.prompts, given.count)
    limit = format_size(limit_of(given))
    print(f"{len(asked)} prompts, {sum(map(len, asked))} tokens, {given.clients} clients; {limit}")
    print("| | new tokens/s | MB read a token | peak | serve against it |\n|---|---|---|---|---|")
    ours = median(row["speed"] for row in rows["serve"])
    for side, runs in rows.items():
        speed, read = (median(row["speed"] for row in runs), median(row["read"] for row in runs))
        peak = format_size(max(int(row["peak"]) for row in runs))
        print(f"| {side} | {speed:.1f} | {read / 1e6:.0f} | {peak} | {ours / speed if speed else 0:.2f}x |")
    first, again = (median(row[name] for row in rows["serve"] if name in row) for name in ("first", "again"))
    print(f"{LONG} tokens: first token after {first:.2f} s, again after {again:.3f} s ({again / first:.3f})")


def measure(given: argparse.Namespace) -> Row:
    """New tokens a second, the reading of prompts included, and bytes read for each."""
    asked = prompts(given.prompts, given.count)
    tokens = len(asked) * given.new_tokens
    if given.side.startswith("llama.cpp"):
        parallel = int(given.side.split()[1])
        side = Parallel(given.gguf, given.threads, parallel, asked, given.new_tokens)
        seconds, read = side.run(asked, given.new_tokens)
        return {"speed": tokens / seconds, "read": read / tokens}
    side = given.side.removesuffix(APART)
    if side != given.side:
        _take_passes_apart()
    return (batch if side == "batch" else served)(given, asked)


def _take_passes_apart() -> None:
    from moe_local.experts.in_step import InStep, attempted

    InStep.run = lambda self, passes: [attempted(each) for each in passes]  # type: ignore[method-assign]


def options_of(given: argparse.Namespace, asked: Sequence[Sequence[int]]) -> Any:
    """The same for both: caches of that many average answers."""
    import torch

    from moe_local.planning.options import Options

    torch.set_num_threads(given.threads)
    each = max(map(len, asked)) + given.new_tokens
    return Options(
        device="cpu",
        ram=given.limit,
        context=LONG + 64,
        max_sequences=given.clients,
        tokens_per_sequence=each,
        threads=given.threads,
    )


def batch(given: argparse.Namespace, asked: Sequence[Sequence[int]]) -> Row:
    from moe_local.engine import load
    from moe_local.generation.batch import Request
    from moe_local.generation.sampling import Sampling

    with load(given.store, options_of(given, asked)) as engine:
        greedy, meter = Sampling(max_new_tokens=given.new_tokens, temperature=0), Meter()
        new = sum(answer.new_tokens for answer in engine.batch(Request(prompt, greedy) for prompt in asked))
        assert new == len(asked) * given.new_tokens
        return {"speed": new / meter.seconds, "read": meter.read / new}


def served(given: argparse.Namespace, asked: Sequence[Sequence[int]]) -> Row:
    from moe_local.cli.serve import BESIDE
    from moe_local.engine import load
    from moe_local.serve.app import make_app
    from moe_local.serve.process import Server, listen, url_of
    from moe_local.serve.service import Service, State
    from moe_local.serve.settings import Names, ServeSettings

    settings, options = ServeSettings(port=0, seconds=36000), replace(options_of(given, asked), beside=BESIDE)
    service = Service(lambda report: load(given.store, options, report=report), settings)
    sock = listen(settings)
    server = Server(make_app(service, Names("store"), settings), settings, service.end, service.cut)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
    service.start()
    thread.start()
    while service.state is State.LOADING:
        time.sleep(0.05)
    try:
        return asyncio.run(_clients(url_of(sock), given, asked))
    finally:
        server.should_exit = True
        thread.join()
        service.close()


async def _clients(url: str, given: argparse.Namespace, asked: Sequence[Sequence[int]]) -> Row:
    import httpx

    async with httpx.AsyncClient(base_url=url, timeout=None) as client:

        async def ask(prompt: Sequence[int], new: int) -> tuple[int, float]:
            body = {"prompt": list(prompt), "max_tokens": new, "temperature": 0, "stream": True}
            body["stream_options"] = {"include_usage": True}
            began, first, tokens = perf_counter(), 0.0, 0
            async with client.stream("POST", "/v1/completions", json=body) as reply:
                async for line in reply.aiter_lines():
                    first = first or perf_counter() - began
                    if '"completion_tokens":' in line:
                        tokens = json.loads(line[6:])["usage"]["completion_tokens"]
            return tokens, first

        left, meter = iter(asked), Meter()

        async def work() -> int:
            return sum([(await ask(prompt, given.new_tokens))[0] for prompt in left])

        new = sum(await asyncio.gather(*(work() for _ in range(given.clients))))
        assert new == len(asked) * given.new_tokens
        row = {"speed": new / meter.seconds, "read": meter.read / new}
        long = [5 + i * i % 150_000 for i in range(LONG)]
        (_, row["first"]), (_, row["again"]) = await ask(long, 1), await ask(long, 1)
        return row


if __name__ == "__main__":
    main()
