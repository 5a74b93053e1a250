"""What is set beforehand: typed before environment before the model's part of the file before its defaults."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .conftest import Run, expect_error

FILE = """
[defaults]
context = 96
max_new_tokens = 3
temperature = 0
stop = ["###", "@@@"]

[models."{}"]
context = 64
pack = false
"""


@pytest.fixture
def file(tmp_path: Path, qwen: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(FILE.format(qwen))
    monkeypatch.setenv("MOE_LOCAL_CONFIG", str(path))
    return path


def _context(run: Run, *given: object) -> int:
    context = json.loads(run("inspect", *given, "--json").stdout)["context"]
    assert isinstance(context, int)
    return context


def test_the_nearer_goes_first(
    run: Run, qwen: Path, mixtral: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _context(run, mixtral) == 96
    assert _context(run, qwen) == _context(run, "-m", qwen) == 64
    monkeypatch.setenv("MOE_LOCAL_CONTEXT", "48")
    assert _context(run, qwen) == 48
    assert _context(run, qwen, "-c", "32") == 32


def test_it_holds_for_commands_that_generate(run: Run, qwen: Path, file: Path) -> None:
    out = json.loads(run("generate", qwen, "-p", "the hen", "--json").stdout)
    assert out["new_tokens"] == 3
    assert json.loads(run("generate", qwen, "-p", "the hen", "-n", "5", "--json").stdout)["new_tokens"] == 5
    assert json.loads(run("list", "--json").stdout) == []  # nothing was packed


def test_what_holds_is_shown(run: Run, qwen: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOE_LOCAL_TOP_K", "20")
    out = json.loads(run("config", qwen, "--json").stdout)
    found = {each["name"]: (each["value"], each["source"]) for each in out["settings"]}
    assert out["file"] == str(file)
    assert found["context"] == (64, f'{file} [models."{qwen}"]')
    assert found["stop"] == (["###", "@@@"], f"{file} [defaults]")
    assert found["top-k"] == ("20", "MOE_LOCAL_TOP_K")
    assert "pack" not in {each["name"] for each in json.loads(run("config", "--json").stdout)["settings"]}
    every = run("config", "--all").stdout
    assert "MOE_LOCAL_VRAM" in every and "--json" not in every
    file.unlink()
    expect_error(run("config"), "which MOE_LOCAL_CONFIG names, is not there")


def test_every_option_has_a_variable_of_its_own(run: Run, file: Path) -> None:
    named = [word for word in run("config", "--all").stdout.split() if word.startswith("MOE_LOCAL_")]
    assert len(named) == len(set(named)) > 40
    assert not {"MOE_LOCAL_HOME", "MOE_LOCAL_KERNELS", "MOE_LOCAL_CONFIG", "MOE_LOCAL_DEBUG"}.intersection(named)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[defaults", "is not TOML"),
        ("[default]\nram = 1", "has a part 'default'"),
        ("[defaults]\ncontxt = 1", "did you mean context?"),
        ("[defaults]\nwaltz = 1", "`moe-local config --all`"),
        ("[defaults]\ncontext = {a = 1}", "gives context a table"),
        ("defaults = 3", "is no table"),
        ("models = 3", "models is no table"),
        ('[models."x"]\nrom = "6GiB"', "did you mean ram?"),
        ("[defaults]\ncontext = 'many'", "invalid value for '--context'"),
        ("[defaults]\nram = 32", "did you mean 32GiB?"),
        ("\0", "is not TOML"),
    ],
)
def test_a_wrong_file_is_said(run: Run, qwen: Path, file: Path, text: str, said: str) -> None:
    file.write_text(text)
    expect_error(run("inspect", qwen), said)


def test_a_file_that_cannot_be_read(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOE_LOCAL_CONFIG", str(tmp_path))
    expect_error(run("list"), "cannot read")


def test_without_a_file_there_is_nothing(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MOE_LOCAL_CONFIG")
    for variable in ("XDG_CONFIG_HOME", "HOME", "LOCALAPPDATA"):
        monkeypatch.setenv(variable, str(tmp_path / "none"))
    assert "(not there yet)" in run("config").stdout
