"""The public face, as docs/reference.md has it: what is named there is there, and keeps its name."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from pathlib import Path

import pytest
import typer

import moe_local
from docs import make_options as options_page
from moe_local import testing
from moe_local.cli.main import app
from moe_local.engine import Engine
from moe_local.planning.options import Options

DOCS = Path(__file__).parent.parent / "docs"
REFERENCE = (DOCS / "reference.md").read_text()
OPTIONS = {"device", "ram", "vram", "context", "experts", "dtype", "policy", "prefetch", "io", "warm"}
METHODS = {"encode", "generate", "chat", "batch", "stats", "close"}
COMMANDS = {
    "recommend", "config",
    "chat", "generate", "batch", "bench", "plan", "inspect", "pack", "verify", "list", "rm", "pull", "doctor",
    "eval", "serve", "ps", "stop",
}  # fmt: skip
ELSEWHERE = {
    "moe_local.errors": {"MoeLocalError"},
    "moe_local.cli": {"main"},
    "moe_local.testing.gguf": {"write_tiny_gguf"},
    "moe_local.testing.quantised": {"rewrite_checkpoint", "decode_checkpoint", "is_linear", "assert_quantised_runs"},
}


def _is_told(name: str) -> bool:
    return name in REFERENCE


def test_the_package() -> None:
    assert {"load", "Options", "Sampling", "Request", "Answer", "Engine"} <= set(moe_local.__all__)
    assert all(getattr(moe_local, name) is not None for name in moe_local.__all__)
    assert all(_is_told(name) for name in moe_local.__all__ if not name.startswith("_"))


def test_options() -> None:
    fields = {field.name for field in dataclasses.fields(Options)}
    assert fields >= OPTIONS
    assert all(_is_told(f"`{name}`") for name in fields)


def test_the_engine() -> None:
    public = {name for name, _ in inspect.getmembers(Engine, inspect.isfunction) if not name.startswith("_")}
    assert public >= METHODS
    assert all(_is_told(name) for name in METHODS)


def test_testing() -> None:
    promised = {"architecture", "tiny_inputs", "tiny_tokenizer", "write_tiny_checkpoint"}
    assert promised <= set(testing.__all__)
    assert all(callable(getattr(testing, name)) and _is_told(name) for name in testing.__all__)


@pytest.mark.parametrize("module", ELSEWHERE)
def test_other_modules(module: str) -> None:
    found = importlib.import_module(module)
    if module == "moe_local.cli":
        found = importlib.import_module("moe_local.cli.main")
    assert all(callable(getattr(found, name)) and _is_told(name) for name in ELSEWHERE[module])


def test_commands() -> None:
    known = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    assert known == COMMANDS
    assert all(_is_told(f"`{name}`") or _is_told(f"moe-local {name}") for name in known)


def test_options_are_as_their_page_says() -> None:
    """docs/options.md is made from the commands: by `python -m docs.make_options`."""
    assert options_page.PAGE.read_text(encoding="utf-8") == options_page.page()
