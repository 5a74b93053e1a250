"""The engine's thread behind a server: what goes wrong in it, or comes at a bad time, ends what it struck alone."""

from __future__ import annotations

import asyncio
import errno
import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from moe_local.engine import Engine, Report, load
from moe_local.errors import MoeLocalError
from moe_local.generation.batch import Answer
from moe_local.generation.sampling import Sampling
from moe_local.planning.options import Options
from moe_local.serve.answers import answering
from moe_local.serve.asking import Asked
from moe_local.serve.errors import RefusedError
from moe_local.serve.feed import Ended, Feed
from moe_local.serve.process import listen
from moe_local.serve.running import Announcement, clear, servers
from moe_local.serve.service import Service, State
from moe_local.serve.settings import ServeSettings

ASKED = Asked([5, 6, 7], Sampling(max_new_tokens=4, temperature=0))


def _load(qwen: Path) -> Callable[[Report], Engine]:
    options = Options(device="cpu", experts=0.5, context=128, max_sequences=2)
    return lambda report: load(qwen, options, report=report)


async def _ready(service: Service) -> None:
    service.start()
    while not service.is_ready:
        assert service.error is None, service.error
        await asyncio.sleep(0.02)


async def _answer(feed: Feed) -> Answer:
    async for event in feed.events():
        if isinstance(event, Ended):
            return event.answer
    raise AssertionError("it has no end")


def _run(service: Service, scenario: Callable[[], Any]) -> None:
    async def run() -> None:
        await _ready(service)
        await asyncio.wait_for(scenario(), 60)

    try:
        asyncio.run(run())
    finally:
        service.close()


def test_who_is_taken_on_while_the_server_begins_to_end_is_told(qwen: Path) -> None:
    service = Service(_load(qwen), ServeSettings())

    async def scenario() -> None:
        before = await service.ask(ASKED)
        busy = threading.Event()
        held = asyncio.ensure_future(service.call(lambda engine: busy.wait(30)))
        await asyncio.sleep(0.05)
        feed = await service.ask(ASKED)  # its task waits while the state changes
        service.end()
        busy.set()
        await held
        assert [(await _answer(each)).error for each in (before, feed)] == [None, None]

    _run(service, scenario)


def test_an_error_in_the_batchs_own_books_ends_the_answers_and_not_the_server(qwen: Path) -> None:
    service = Service(_load(qwen), ServeSettings())
    told: list[str] = []
    service.on_error = lambda error: told.append(str(error))

    async def scenario() -> None:
        alone = await _answer(await service.ask(ASKED))
        batch, admit = service.batch, service.batch.turns.admit

        def fail() -> Any:
            if batch.turns.waiting:
                batch.turns.admit = admit  # type: ignore[method-assign]
                raise RuntimeError("out of /dev/secret")
            return admit()

        batch.turns.admit = fail  # type: ignore[method-assign]
        struck = await _answer(await service.ask(ASKED))
        assert struck.error is not None and "secret" not in struck.error
        assert told == ["out of /dev/secret"]
        assert (await _answer(await service.ask(ASKED))).token_ids == alone.token_ids

    _run(service, scenario)


def test_work_that_nobody_waits_for_any_more_is_left(qwen: Path) -> None:
    service = Service(_load(qwen), ServeSettings())

    async def scenario() -> None:
        busy, done = threading.Event(), []
        held = asyncio.ensure_future(service.call(lambda engine: busy.wait(30)))
        left = asyncio.ensure_future(service.call(lambda engine: done.append(1)))
        await asyncio.sleep(0.05)
        left.cancel()
        await asyncio.sleep(0.05)
        busy.set()
        await held
        assert (await _answer(await service.ask(ASKED))).error is None
        assert not done

    _run(service, scenario)


def test_an_answer_that_only_has_to_be_read_keeps_nobody_waiting(qwen: Path) -> None:
    service = Service(_load(qwen), ServeSettings(queue=1))

    async def scenario() -> None:
        unread = []
        for _ in range(3 * service.room):
            unread.append(await service.ask(ASKED))
            while unread[-1].ended_at is None:
                await asyncio.sleep(0.01)
        assert service.open == service.waiting == 0
        texts = {tuple((await _answer(each)).token_ids) for each in unread}
        for each in unread:
            service.over(each)
        assert len(texts) == 1

    _run(service, scenario)


def test_more_answers_than_are_ever_taken_on_are_refused_for_good(qwen: Path) -> None:
    service = Service(_load(qwen), ServeSettings(queue=3))

    async def scenario() -> None:
        assert service.room == 5
        with pytest.raises(RefusedError, match="6 answers are more than the 5") as found:
            async with answering(service, [ASKED] * 6):
                pass
        assert found.value.status == 400
        async with answering(service, [ASKED] * 5) as answers:
            assert len(await answers.whole()) == 5

    _run(service, scenario)


def test_an_end_while_it_loads_does_not_wait_for_the_model(qwen: Path) -> None:
    began, go_on, further = threading.Event(), threading.Event(), []

    def slow(report: Report) -> Engine:
        began.set()
        go_on.wait(30)
        report("dense weights", 0.5)
        further.append(1)
        return load(qwen, Options(device="cpu"))

    service = Service(slow, ServeSettings())
    service.start()
    began.wait(30)
    threading.Timer(0.2, go_on.set).start()
    service.close()
    assert not further and service.error is None and service.state is State.LOADING


def test_a_failure_to_say_that_it_is_ready_frees_the_engine(qwen: Path) -> None:
    service = Service(_load(qwen), ServeSettings())
    failed = threading.Event()

    def fail() -> None:
        raise MoeLocalError("cannot write it")

    service.on_ready, service.on_failed = fail, failed.set
    service.start()
    assert failed.wait(60)
    assert service.state is State.FAILED and isinstance(service.error, MoeLocalError)
    assert service._engine is not None
    with pytest.raises(MoeLocalError):
        service._engine.generate([5, 6], Sampling(max_new_tokens=1))
    service.close()


def test_a_port_is_one_servers_alone_from_the_beginning() -> None:
    with listen(ServeSettings(port=0)) as first, pytest.raises(MoeLocalError, match="cannot listen"):
        listen(ServeSettings(port=first.getsockname()[1]))


@pytest.mark.skipif(sys.platform != "linux", reason="the system's own limit of it")
def test_who_does_not_read_has_gone_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moe_local.serve.process._UNREAD", 0.5)
    with listen(ServeSettings(port=0)) as sock, socket.create_connection(sock.getsockname()):
        connection, _ = sock.accept()
        connection.settimeout(30)
        with connection, pytest.raises(TimeoutError) as found:
            while True:
                connection.sendall(b"x" * 65536)
        assert found.value.errno == errno.ETIMEDOUT  # not the socket's own limit


@pytest.mark.parametrize("host", ["x" * 300, ".", "::1::", "no.such.host.invalid"])
def test_hosts_that_are_none(host: str) -> None:
    with pytest.raises(MoeLocalError, match="cannot listen"):
        listen(ServeSettings(host=host, port=0))


@pytest.mark.skipif(not socket.has_ipv6, reason="needs IPv6")
def test_ipv6_with_and_without_brackets() -> None:
    for host in ("::1", "[::1]"):
        try:
            listen(ServeSettings(host=host, port=0)).close()
        except MoeLocalError as error:
            assert "annot assign" in str(error)  # a machine without the address


def test_a_ready_file_of_an_impossible_name_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOE_LOCAL_HOME", str(tmp_path / "home"))
    for name in (Path("a\0b"), tmp_path):
        announcement = Announcement("http://127.0.0.1:1", "m", name)
        with pytest.raises(MoeLocalError, match=r"cannot write|no ready file"):
            clear(name)
        with pytest.raises(MoeLocalError, match="cannot write"):
            announcement.make()
        announcement.withdraw()
    assert not servers()


def test_a_ready_file_that_was_left_behind_goes_and_any_other_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOE_LOCAL_HOME", str(tmp_path / "home"))
    file = tmp_path / "ready.json"
    announcement = Announcement("http://127.0.0.1:1", "m", file)
    announcement.make()
    clear(file)
    assert not file.exists()
    for text in ("[1]", "my notes", "{}", '{"url": "http://127.0.0.1:1"}'):
        file.write_text(text)
        with pytest.raises(MoeLocalError, match="no ready file"):
            clear(file)
        assert file.read_text() == text
    announcement.withdraw()


def test_a_clock_that_was_set_loses_no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOE_LOCAL_HOME", str(tmp_path / "home"))
    Announcement("http://127.0.0.1:1", "m", None).make()
    (file,) = (tmp_path / "home").rglob("*.json")
    told = json.loads(file.read_text())
    file.write_text(json.dumps({**told, "started": told["started"] + 1.01}))
    assert [each.model for each in servers()] == ["m"]
    file.write_text(json.dumps({**told, "started": told["started"] + 60}))
    assert not servers() and not file.exists()


def test_sigterm_while_loading_ends_it_quietly(qwen: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "moe_local.cli.main", "serve", str(qwen), "--port", "0"]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    try:
        own = psutil.Process(process.pid)
        while not own.net_connections():  # it listens before it loads
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert "Traceback" not in said and process.returncode in (0, -signal.SIGTERM, 128 + signal.SIGTERM), said
