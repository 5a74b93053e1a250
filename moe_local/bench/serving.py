"""How fast a server answers many at once: any that speaks OpenAI's chat completions."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from time import perf_counter
from typing import Any

import httpx

from moe_local.bench.workload import Prompt
from moe_local.serve.settings import is_loopback

QUANTILES = (50, 95, 99)
_PATH = "/v1/chat/completions"
_PATIENCE = 3600.0  # seconds


@dataclass(frozen=True)
class Load:
    """What a server is asked: so many requests in all, so many at a time, each for so many tokens at most."""

    url: str
    model: str
    prompts: Sequence[Prompt]
    requests: int
    max_tokens: int
    api_key: str | None = None
    temperature: float | None = None


@dataclass(frozen=True)
class Reply:
    """What one request took; with an `error` it was not answered to its end."""

    first: float = math.nan  # seconds from asking to the first piece of text
    seconds: float = math.nan  # to the end
    tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    error: str | None = None

    @property
    def between(self) -> float:
        """Seconds from one token to the next, on average; NaN of answers with less than two."""
        return (self.seconds - self.first) / (self.tokens - 1) if self.tokens > 1 else math.nan


def drive(load: Load, concurrency: int, on_reply: Callable[[Reply], None] = lambda reply: None) -> dict[str, Any]:
    """Asks so many at a time -> figures. `on_reply` is told of each."""
    began = perf_counter()
    replies = asyncio.run(_drive(load, concurrency, on_reply))
    return figures(replies, perf_counter() - began, concurrency)


async def _drive(load: Load, concurrency: int, on_reply: Callable[[Reply], None]) -> list[Reply]:
    limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
    left: Iterator[Prompt] = islice(cycle(load.prompts), load.requests)
    replies: list[Reply] = []
    direct = is_loopback(httpx.URL(load.url).host)  # a proxy would not find this machine
    async with httpx.AsyncClient(
        base_url=load.url,
        headers=_headers(load.api_key),
        limits=limits,
        timeout=_PATIENCE,
        trust_env=not direct,
    ) as client:

        async def work() -> None:
            for prompt in left:
                reply = await _ask(client, load, prompt)
                replies.append(reply)
                on_reply(reply)

        await asyncio.gather(*(work() for _ in range(min(concurrency, load.requests))))
    return replies


async def _ask(client: httpx.AsyncClient, load: Load, prompt: Prompt) -> Reply:
    body: dict[str, Any] = {
        "model": load.model,
        "messages": [{"role": "user", "content": prompt.text}],
        "max_tokens": load.max_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if load.temperature is not None:
        body["temperature"] = load.temperature
    began, first = perf_counter(), math.nan
    usage: dict[str, Any] = {}
    try:
        async with client.stream("POST", _PATH, json=body) as reply:
            if reply.status_code != 200:
                return Reply(error=f"{reply.status_code} {(await reply.aread())[:300].decode(errors='replace')}")
            async for line in _lines(reply):
                if not line.startswith(b"data: {"):
                    continue
                piece = json.loads(line[6:])
                if "error" in piece:
                    return Reply(error=str(piece["error"]))
                usage = piece.get("usage") or usage
                if math.isnan(first) and any(_says(choice["delta"]) for choice in piece.get("choices", ())):
                    first = perf_counter() - began
    except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
        return Reply(error=_said(error))
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    tokens, asked = usage.get("completion_tokens", 0), usage.get("prompt_tokens", 0)
    return Reply(first, perf_counter() - began, tokens, asked, cached)


async def _lines(reply: httpx.Response) -> AsyncIterator[bytes]:
    """Not `aiter_lines`, to which signs inside a JSON text end a line as well."""
    begun = b""
    async for piece in reply.aiter_bytes():
        *whole, begun = (begun + piece).split(b"\n")
        for line in whole:
            yield line


def _says(delta: dict[str, Any]) -> bool:
    return any(delta.get(name) for name in ("content", "reasoning_content", "tool_calls"))


def figures(replies: Sequence[Reply], seconds: float, concurrency: int) -> dict[str, Any]:
    """What many replies took together: speeds in tokens/s, times in seconds, by quantile."""
    well = [reply for reply in replies if reply.error is None]
    tokens = sum(reply.tokens for reply in well)
    return {
        "concurrency": concurrency,
        "requests": len(replies),
        "failed": len(replies) - len(well),
        "errors": sorted({reply.error for reply in replies if reply.error is not None})[:5],
        "seconds": round(seconds, 3),
        "requests_per_second": round(len(well) / seconds, 4),
        "tokens": tokens,
        "tokens_per_second": round(tokens / seconds, 3),
        "prompt_tokens": sum(reply.prompt_tokens for reply in well),
        "cached_tokens": sum(reply.cached_tokens for reply in well),
        "time_to_first_token": quantiles([reply.first for reply in well]),
        "time_between_tokens": quantiles([reply.between for reply in well]),
        "time_of_answer": quantiles([reply.seconds for reply in well]),
    }


def quantiles(values: Sequence[float]) -> dict[str, float | None]:
    """p50, p95 and p99, each a value that was measured; None where there is none."""
    known = sorted(value for value in values if not math.isnan(value))
    if not known:
        return {f"p{each}": None for each in QUANTILES}
    return {f"p{each}": round(known[max(0, math.ceil(len(known) * each / 100) - 1)], 4) for each in QUANTILES}


def _headers(api_key: str | None) -> dict[str, str]:
    return {} if api_key is None else {"Authorization": f"Bearer {api_key}"}


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__
