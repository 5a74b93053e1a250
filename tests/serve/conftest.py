"""Servers as processes, on ports of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

_PATIENCE = 120.0  # seconds


@dataclass
class Running:
    """A server that answers."""

    url: str
    process: subprocess.Popen[str]
    log: Path

    def client(self, **more: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=_PATIENCE, **more)

    def said(self) -> str:
        return self.log.read_text()


@contextmanager
def serving(model: str | Path | None, folder: Path, *options: str) -> Iterator[Running]:
    """`moe-local serve` of a model; ended at the end, if it has not ended before."""
    folder.mkdir(parents=True, exist_ok=True)
    ready, log = folder / "ready.json", folder / "log.txt"
    words = [
        "serve",
        *([str(model)] if model is not None else []),
        "--port",
        "0",
        "--ready-file",
        str(ready),
        *options,
    ]
    env = {**os.environ, "MOE_LOCAL_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1", "NO_COLOR": "1"}
    with log.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "moe_local.cli.main", *words], stdout=stream, stderr=stream, env=env, text=True
        )
    try:
        until = time.monotonic() + _PATIENCE
        while not ready.exists():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.05)
        yield Running(json.loads(ready.read_text())["url"], process, log)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


Serve = Callable[..., Any]


@pytest.fixture(scope="module")
def qwen_server(qwen: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A tiny model that says nothing sensible, half of its experts in memory."""
    folder = tmp_path_factory.mktemp("server")
    with serving(qwen, folder, "--experts", "50%", "--dtype", "float32", "--parallel", "4") as running:
        yield running
