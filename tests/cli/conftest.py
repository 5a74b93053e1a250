"""Running the command as users do: in process for speed, and as a real process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from moe_local.cli.main import app
from tests.cli.screen import Open, Screen
from tests.processes import MOE, start

Result = Any  # typer's runner has no public name for it
Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """`run("generate", path, "-p", "hi")`; keeps to cache folders of its own."""
    monkeypatch.setenv("MOE_LOCAL_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))

    def invoke(*arguments: object, stdin: str | None = None) -> Result:
        return CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)

    return invoke


@pytest.fixture
def process(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Starts `moe-local` as a process of its own, with pipes."""

    def begin(*arguments: object) -> subprocess.Popen[str]:
        return start(
            [*MOE, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "MOE_LOCAL_HOME": str(tmp_path / "home"),
                "HF_HUB_OFFLINE": "1",
                "OMP_NUM_THREADS": "1",
            },
        )

    return begin


@pytest.fixture
def endless(qwen: Path, tmp_path: Path) -> Path:
    """A checkpoint whose answers go on for minutes: a long context and no end token."""
    copy = Path(shutil.copytree(qwen, tmp_path / "endless"))
    config = json.loads((copy / "config.json").read_text())
    config |= {"max_position_embeddings": 1_000_000, "eos_token_id": None}
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "generation_config.json").write_text('{"do_sample": false, "suppress_tokens": [2]}')  # 2: the end
    return copy


def expect_error(result: Result, said: str, *, code: int | None = None) -> None:
    """One line on stderr, no traceback, an exit code that is not 0."""
    assert result.exit_code != 0
    assert code is None or result.exit_code == code
    lines = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1, result.output
    assert said in lines[0]
    assert "Traceback" not in result.output + result.stderr
    assert result.stdout == ""


@pytest.fixture
def open_chat(tmp_path: Path) -> Iterator[Open]:
    screens: list[Screen] = []

    def begin(*arguments: object, columns: int = 100, **env: str) -> Screen:
        screens.append(Screen(tmp_path, arguments, columns, env))
        return screens[-1]

    yield begin
    for screen in screens:
        screen.child.close(force=True)
