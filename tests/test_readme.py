"""README says only what is run: every command in a `sh` block is run by `.ci/run`, and exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer

from moe_local.cli.main import app
from moe_local.planning.machines import profiles

README = (Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"^```sh\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
PYTHON = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_the_first_command_chats_and_the_second_tests() -> None:
    assert re.search(r"pip install .* && moe-local chat$", BLOCKS[0].strip())
    assert re.search(r"pip install .* && pytest$", BLOCKS[1].strip())


def test_every_command_named_exists() -> None:
    known = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    named = set(re.findall(r"(?:`|\$ |```sh\n|&& )moe-local ([a-z]+)", README))
    assert named >= {"chat", "generate", "inspect", "pull", "doctor"}
    assert named <= known


def test_every_profile_is_listed() -> None:
    assert all(f"`{name}`" in README for name in profiles())


@pytest.mark.parametrize("number", range(len(PYTHON)))
def test_python_runs(number: int, qwen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "monday.txt").write_text("All is well.")
    program = PYTHON[number].replace("path/to/checkpoint", str(qwen))
    assert str(qwen) in program
    exec(compile(program, "README.md", "exec"), {})
    if "reports" in program:
        assert (tmp_path / "reports" / "monday.summary").read_text()
