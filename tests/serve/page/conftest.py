"""A server of a tiny model, and a tab that looks at it."""

from __future__ import annotations

import json
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import httpx
import pytest
from playwright.sync_api import sync_playwright

from moe_local.engine import load
from moe_local.planning.options import Options
from moe_local.serve.app import make_app
from moe_local.serve.process import Server, listen, url_of
from moe_local.serve.service import Service
from moe_local.serve.settings import Names, ServeSettings
from tests.serve.page.tab import PATIENCE, Watched

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CONTEXT = 20_000  # tokens


@pytest.fixture(scope="package")
def server_url(qwen: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where a server answers, with a tiny model whose answers go on until they are stopped."""
    model = Path(shutil.copytree(qwen, tmp_path_factory.mktemp("served") / "tiny"))
    (model / "config.json").write_text(json.dumps(_without_end(json.loads((model / "config.json").read_text()))))
    (model / "generation_config.json").write_text('{"do_sample": false, "suppress_tokens": [2]}')  # 2: the end
    settings, options = ServeSettings(port=0), Options(device="cpu", context=CONTEXT, experts=0.5, max_sequences=4)
    sock = listen(settings)
    service = Service(lambda report: load(model, options, report=report), settings)
    server = Server(make_app(service, Names("tiny"), settings), settings, service.end, service.cut)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
    ready = threading.Event()
    service.on_ready = ready.set
    service.start()
    thread.start()
    assert ready.wait(PATIENCE / 1000), service.error
    yield url_of(sock)
    server.should_exit = server.force_exit = True
    thread.join()
    service.close()
    sock.close()


def _without_end(config: dict[str, Any]) -> dict[str, Any]:
    return config | {"max_position_embeddings": CONTEXT, "eos_token_id": None}


@pytest.fixture(scope="package")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no Chromium here")
    with sync_playwright() as driver:
        yield driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


@pytest.fixture
def watched(browser: Any, server_url: str) -> Iterator[Watched]:
    """A tab whose answers the server ends once it is closed."""
    tab = Watched(browser, server_url)
    yield tab
    print(under_way(server_url))  # shown where a test failed
    tab.close()
    until = monotonic() + PATIENCE / 1000 / 3  # of an answer that nobody ends there is more
    while (left := under_way(server_url)) and monotonic() < until:
        sleep(0.05)
    assert left == {}
    assert tab.problems == []


UNDER_WAY = re.compile(r"^(moe_local_(?:requests_\w+|answers_running|prompts_reading)) (\S+)$", re.MULTILINE)


def under_way(server_url: str) -> dict[str, float]:
    """What the server has to do for anybody, by its metrics that are not 0."""
    found = UNDER_WAY.findall(httpx.get(f"{server_url}/metrics").text)
    assert len(found) == 4
    return {name: float(value) for name, value in found if float(value)}


@pytest.fixture
def page(watched: Watched) -> Any:
    """The page once the model is there."""
    return watched.open()
