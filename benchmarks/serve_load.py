"""What `moe-local serve` does under load and abuse, within a limit of memory: the demo model, half of its experts.

    python benchmarks/serve_load.py [--seconds 600] [--clients 100] [--bodies 10000] [--connections 1000]

Needs Linux and root (a memory cgroup of `--limit`, which is the budget too). First each prompt is answered alone,
greedily in float32. Then, for so many seconds, so many clients ask them over and over, stream the answers, and come
back when they are told to; one answer in ten is given up in its middle. Each is compared with the one that it has
alone. Then bodies that are wrong are sent, and connections opened that say nothing, half of something, or shut one
side. What is printed: answers by status, those that differ, peak memory, files left open.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import DEVNULL, Popen
from tempfile import TemporaryDirectory
from typing import Any

import confined
import httpx
import psutil

from moe_local.bench.workload import OWN
from moe_local.units import format_size, parse_size

PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/messages/count_tokens")
CHAT = PATHS[0]
NEW_TOKENS = 24
KILLED = 0.1  # of the requests


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--bodies", type=int, default=10_000)
    parser.add_argument("--connections", type=int, default=1000)
    parser.add_argument("--limit", type=parse_size, default=parse_size("1400MiB"))
    given = parser.parse_args()
    with TemporaryDirectory() as folder, serving(Path(folder), given.limit) as (url, process):
        asyncio.run(measure(url, process, given))


@contextmanager
def serving(folder: Path, limit: int) -> Iterator[tuple[str, psutil.Process]]:
    """A server held to so many bytes, whose queue is shorter than the crowd."""
    ready = folder / "ready.json"
    options = (
        f"--port 0 --dtype float32 --experts 50% --queue 64 --ram {limit} --no-pack --ready-file {ready}".split()
    )
    command = [sys.executable, "-m", "moe_local.cli.main", "serve", *options]
    confined.drop_caches()
    with (
        confined.group(limit) as group,
        Popen(command, preexec_fn=confined.joining(group), stdout=DEVNULL, stderr=sys.stderr) as started,
    ):
        while not ready.exists():
            assert started.poll() is None, "it does not begin"
            time.sleep(0.1)
        try:
            yield json.loads(ready.read_text())["url"], psutil.Process(started.pid)
        finally:
            print(f"it ends with {started.poll()}" if started.poll() is not None else "it runs to the end")
            started.terminate()


async def measure(url: str, process: psutil.Process, given: argparse.Namespace) -> None:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=given.clients)
    async with httpx.AsyncClient(base_url=url, timeout=900, limits=limits) as client:
        alone = {prompt.text: (await ask(client, prompt.text))[1] for prompt in OWN}
        files = process.num_fds()
        print(await crowd(client, alone, given), flush=True)
        print(
            f"peak {format_size(await gauge(client, 'process_memory_peak_bytes'))} of {format_size(given.limit)}",
            flush=True,
        )
        before = process.memory_info().rss
        print(await nonsense(client, given.bodies), flush=True)
        print(await connections(client, url, given.connections), flush=True)
        await asyncio.sleep(10)
        grown = process.memory_info().rss - before
        left = {name: await gauge(client, name) for name in ("requests_open", "answers_running")}
        print(
            f"afterwards {left}, files {process.num_fds()} against {files}, memory {grown / 2**20:+.0f} MiB",
            flush=True,
        )
        print(
            f"peak {format_size(await gauge(client, 'process_memory_peak_bytes'))} of {format_size(given.limit)}",
            flush=True,
        )


async def gauge(client: httpx.AsyncClient, name: str) -> int:
    lines = (await client.get("/metrics")).text.splitlines()
    return int(float(next(line.split()[1] for line in lines if line.startswith(f"moe_local_{name} "))))


async def ask(client: httpx.AsyncClient, text: str, kill_after: int | None = None) -> tuple[int, str]:
    """Status and answer; as a client that is killed after so many pieces the answer so far."""
    messages = [{"role": "user", "content": text}]
    body = {"messages": messages, "max_tokens": NEW_TOKENS, "temperature": 0, "stream": True}
    said, pieces = "", 0
    async with client.stream("POST", CHAT, json=body) as reply:
        if reply.status_code != 200:
            await reply.aread()
            return reply.status_code, reply.headers.get("retry-after", "")
        async for line in reply.aiter_lines():
            if not line.startswith("data: {"):
                continue
            found = json.loads(line[6:])
            if "error" in found:
                return 500, str(found["error"])
            said += found["choices"][0]["delta"].get("content", "")
            pieces += 1
            if pieces == kill_after:
                break
    return 200, said


async def crowd(client: httpx.AsyncClient, alone: dict[str, str], given: argparse.Namespace) -> str:
    until, found, chance = time.monotonic() + given.seconds, Counter[str](), random.Random(3)

    async def work() -> None:
        while time.monotonic() < until:
            text = chance.choice(list(alone))
            kill_after = chance.randrange(1, NEW_TOKENS) if chance.random() < KILLED else None
            status, said = await ask(client, text, kill_after)
            if status == 429:
                found["told to come back"] += 1
                await asyncio.sleep(int(said))
            elif status != 200:
                found[f"status {status}: {said[:80]}"] += 1
            elif kill_after is not None:
                found["killed"] += 1
                found["killed, and wrong till then"] += not alone[text].startswith(said)
            else:
                found["answered"] += 1
                found["answered otherwise than alone"] += said != alone[text]

    await asyncio.gather(*(work() for _ in range(given.clients)))
    return f"{given.clients} clients for {given.seconds:.0f} s: {dict(found)}"


async def nonsense(client: httpx.AsyncClient, count: int) -> str:
    source, found, slowest = random.Random(7), Counter[int](), 0.0
    for number in range(count):
        began = time.perf_counter()
        headers = {"Content-Type": "application/json"}
        reply = await client.post(PATHS[number % len(PATHS)], content=wrong_body(source), headers=headers)
        found[reply.status_code] += 1
        slowest = max(slowest, time.perf_counter() - began)
    return f"{count} bodies that are wrong: {dict(found)}, the slowest {slowest:.2f} s"


def wrong_body(source: random.Random) -> bytes:
    whole: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
    made: list[Any] = [None, True, -1, 1e308, "", "x" * 1000, [], {}, [[]], {"a": []}, "\ud800", [None] * 50]
    names = ["n", "temperature", "tools", "stop", "seed", "model", "what", "logit_bias", "stream"]
    return source.choice(
        [
            lambda: bytes(source.randrange(256) for _ in range(source.randrange(200))),
            lambda: json.dumps(whole).encode()[: source.randrange(1, 60)],
            lambda: b"[" * source.randrange(1, 100_000),
            lambda: json.dumps({**whole, "messages": source.choice(made)}).encode(),
            lambda: json.dumps({**whole, "messages": [{"role": source.choice(made), "content": "a"}]}).encode(),
            lambda: json.dumps({**whole, source.choice(names): {"": 0}}).encode(),
        ]
    )()


async def connections(client: httpx.AsyncClient, url: str, count: int) -> str:
    """Opens them all, of four kinds in turn, asks beside them, and closes them."""
    host, port = url.removeprefix("http://").split(":")
    body = json.dumps({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: "
    request = f"{head}{len(body)}\r\n\r\n".encode() + body
    kinds = (b"", b"POST /v1/chat", request[:-9], request)
    held, refused = [], 0
    for number in range(count):
        try:
            reader, writer = await asyncio.open_connection(host, int(port))
        except OSError:
            refused += 1
            continue
        said = kinds[number % len(kinds)]
        writer.write(said)
        if said == request:
            writer.write_eof()
        held.append((said, reader, writer))
    began = time.perf_counter()
    while (found := await ask(client, "hi"))[0] == 429:
        await asyncio.sleep(int(found[1]))
    took = time.perf_counter() - began
    replies = Counter[str]()
    for said, reader, _ in held:
        if said == request:
            replies[(await asyncio.wait_for(reader.readline(), 120)).decode().strip()] += 1
    for *_, writer in held:
        writer.close()
    return f"{count} connections: {refused} refused, {dict(replies)}; one beside them: {found[0]} after {took:.1f} s"


if __name__ == "__main__":
    main()
