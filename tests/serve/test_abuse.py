"""Clients that go, stall, send nonsense or too much: each is served or refused, and nobody else is held up."""

from __future__ import annotations

import json
import random
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil

from tests.serve.conftest import Running, serving

MESSAGES: Any = [{"role": "user", "content": "the hen and the fox went to see the king"}]
LONG: Any = {"messages": MESSAGES, "max_tokens": 400, "temperature": 0}
PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/messages/count_tokens")


def _connect(server: Running) -> socket.socket:
    split = urlsplit(server.url)
    return socket.create_connection((split.hostname, split.port), timeout=30)


def _request(body: bytes, length: int | None = None, path: str = PATHS[0]) -> bytes:
    size = len(body) if length is None else length
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {size}\r\n\r\n"
    )
    return head.encode() + body


def _gauge(client: httpx.Client, name: str) -> float:
    lines = client.get("/metrics").text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"moe_local_{name} "))


def _wait_for(client: httpx.Client, name: str, value: float) -> None:
    until = time.monotonic() + 20
    while _gauge(client, name) != value:
        assert time.monotonic() < until, (name, _gauge(client, name))
        time.sleep(0.02)


def nonsense(random: random.Random) -> bytes:
    """A body that is wrong in one of many ways."""
    whole: dict[str, Any] = {"messages": MESSAGES, "max_tokens": 2}
    made: list[Any] = [
        None, True, -1, 1e308, "", "x" * 1000, [], {}, [[]], {"a": []}, "\ud800", [None] * 50, {"type": "text"},
    ]  # fmt: skip
    way = random.randrange(6)
    if way == 0:
        return bytes(random.randrange(256) for _ in range(random.randrange(200)))
    if way == 1:
        return json.dumps(whole).encode()[: random.randrange(1, 60)]
    if way == 2:
        return b"[" * random.randrange(1, 100_000)
    if way == 3:
        return json.dumps({**whole, "messages": random.choice(made)}).encode()
    if way == 4:
        message = {"role": random.choice(made), "content": random.choice(made)}
        return json.dumps({**whole, "messages": [message]}).encode()
    return json.dumps(
        {**whole, random.choice(["n", "temperature", "tools", "stop", "seed", "model", "what"]): {"": 0}}
    ).encode()


def test_nonsense_is_refused(qwen_server: Running) -> None:
    source = random.Random(7)
    with qwen_server.client() as client:
        for number in range(400):
            body = nonsense(source)
            reply = client.post(
                PATHS[number % len(PATHS)], content=body, headers={"Content-Type": "application/json"}
            )
            assert 400 <= reply.status_code < 500, (body[:300], reply.text)
            assert reply.json()["error"]["message"]
        assert client.post("/v1/completions", json={"prompt": "the hen", "max_tokens": 2}).status_code == 200


def test_who_goes_frees_the_place_within_a_token(qwen_server: Running) -> None:
    with qwen_server.client() as client:
        for streamed in (False, True):
            before = _gauge(client, "generated_tokens_total")
            held = [_connect(qwen_server) for _ in range(6)]  # two of them wait
            for each in held:
                each.sendall(_request(json.dumps({**LONG, "stream": streamed}).encode()))
            _wait_for(client, "requests_open", 6)
            for each in held:
                each.close()
            _wait_for(client, "requests_open", 0)
            _wait_for(client, "answers_running", 0)
            assert _gauge(client, "generated_tokens_total") - before < 6 * 400


def test_half_a_request_holds_nobody_up(qwen_server: Running) -> None:
    body = json.dumps({**LONG, "max_tokens": 3}).encode()
    stalled = []
    for part in (b"", b"POST /v1/chat", _request(body)[:-20], _request(b"", 5000)):
        stalled.append(_connect(qwen_server))
        stalled[-1].sendall(part)
    shut = _connect(qwen_server)
    shut.sendall(_request(body))
    shut.shutdown(socket.SHUT_WR)  # a client that will not say any more, and may still listen
    with qwen_server.client() as client:
        assert client.post("/v1/chat/completions", json={**LONG, "max_tokens": 3}).status_code == 200
    for each in (*stalled, shut):
        each.close()
    with qwen_server.client() as client:
        _wait_for(client, "requests_open", 0)


def test_a_client_that_does_not_read_holds_nobody_up(qwen_server: Running) -> None:
    lazy = [_connect(qwen_server) for _ in range(3)]
    for each in lazy:
        each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        each.sendall(_request(json.dumps({**LONG, "stream": True, "logprobs": True, "top_logprobs": 20}).encode()))
    with qwen_server.client() as client:
        assert client.post("/v1/chat/completions", json={**LONG, "max_tokens": 3}).status_code == 200
        for each in lazy:
            each.close()
        _wait_for(client, "requests_open", 0)


def test_too_much_is_refused_before_it_is_read(qwen_server: Running) -> None:
    with qwen_server.client() as client:
        reply = client.post(
            "/v1/chat/completions", content=b"x" * (9 << 20), headers={"Content-Type": "application/json"}
        )
        assert reply.status_code == 413

        def endless() -> Any:
            for _ in range(20):
                yield b"x" * (1 << 20)

        reply = client.post("/v1/chat/completions", content=endless(), headers={"Content-Type": "application/json"})
        assert reply.status_code == 413


def test_many_at_once_are_answered_as_each_alone(qwen_server: Running) -> None:
    texts = [
        f"the {word} and the fox, number {number}" for number in range(6) for word in ("hen", "dog", "cat", "king")
    ]
    asked = [{"messages": [{"role": "user", "content": text}], "max_tokens": 12, "temperature": 0} for text in texts]
    with qwen_server.client() as client:

        def answer(body: Any) -> str:
            reply = client.post("/v1/chat/completions", json=body)
            assert reply.status_code == 200, reply.text
            return str(reply.json()["choices"][0]["message"]["content"])

        alone = [answer(body) for body in asked]
        with ThreadPoolExecutor(len(asked)) as pool:
            assert list(pool.map(answer, asked)) == alone
        assert list(map(answer, reversed(asked))) == alone[::-1]


def test_connections_are_closed_and_memory_is_flat(qwen_server: Running) -> None:
    process = psutil.Process(qwen_server.process.pid)
    with qwen_server.client() as client:
        client.post("/v1/chat/completions", json={**LONG, "max_tokens": 3})
        before, memory = len(process.net_connections()), process.memory_info().rss
        for _ in range(3):
            held = [_connect(qwen_server) for _ in range(200)]
            assert client.post("/v1/chat/completions", json={**LONG, "max_tokens": 3}).status_code == 200
            for each in held:
                each.close()
        until = time.monotonic() + 20
        while len(process.net_connections()) > before:
            assert time.monotonic() < until
            time.sleep(0.05)
        assert process.memory_info().rss < memory + (64 << 20)


def test_a_full_queue_says_when_to_come_again(qwen: Path, tmp_path: Path) -> None:
    with serving(qwen, tmp_path, "--parallel", "1", "--queue", "2") as server, server.client() as client:
        held = [_connect(server) for _ in range(3)]
        for each in held:
            each.sendall(_request(json.dumps(LONG).encode()))
        _wait_for(client, "requests_open", 3)
        reply = client.post("/v1/chat/completions", json=LONG)
        assert reply.status_code == 429 and int(reply.headers["retry-after"]) >= 1
        assert reply.json()["error"]["code"] == "queue_full"
        for each in held:
            each.close()
        _wait_for(client, "requests_open", 0)


def test_an_answer_that_takes_too_long_is_ended(qwen: Path, tmp_path: Path) -> None:
    with serving(qwen, tmp_path, "--timeout", "1", "--parallel", "1") as server, server.client() as client:
        with ThreadPoolExecutor(4) as pool:
            replies = list(pool.map(lambda _: client.post("/v1/chat/completions", json=LONG), range(4)))
        assert {reply.status_code for reply in replies} <= {200, 504}
        assert 504 in {reply.status_code for reply in replies}
        _wait_for(client, "requests_open", 0)


def test_told_twice_it_ends_at_once_and_says_so_to_who_waits(qwen: Path, tmp_path: Path) -> None:
    with serving(qwen, tmp_path, "--parallel", "1") as server, server.client() as client:
        body = {**LONG, "logit_bias": {"2": -100}, "stream": True}
        lazy = _connect(server)
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        with client.stream("POST", "/v1/chat/completions", json=body) as reply:
            lines = reply.iter_lines()
            next(lines)
            lazy.sendall(_request(json.dumps(body).encode()))
            server.process.send_signal(signal.SIGINT)
            assert "content" in "".join(next(lines) for _ in range(9))  # it goes on
            server.process.send_signal(signal.SIGINT)
            *_, last, _ = lines
        assert json.loads(last.removeprefix("data: "))["error"]["message"] == "the server is ending"
        assert server.process.wait(30) == 0
        assert "Traceback" not in server.said() and "ERROR" not in server.said().upper()
        lazy.close()
