"""`pack`, `verify`, and packing on first use."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Run, expect_error
from tests.processes import small_disk


def test_pack_verify_and_use(run: Run, qwen: Path, tmp_path: Path) -> None:
    made = json.loads(run("pack", qwen, "-o", tmp_path / "store", "--format", "int8", "--json").stdout)
    assert made["store"] == str(tmp_path / "store")
    assert made["bytes"] < made["source_bytes"]
    assert "is whole" in run("verify", tmp_path / "store").stdout
    answered = run("generate", tmp_path / "store", "-p", "hello", "-n", "4", "--json")
    assert json.loads(answered.stdout)["new_tokens"] == 4
    assert "int8" in run("inspect", tmp_path / "store").stdout


def test_a_damaged_store(run: Run, qwen: Path, tmp_path: Path) -> None:
    run("pack", qwen, "-o", tmp_path / "store", "--format", "int8")
    file = tmp_path / "store" / "experts-00000.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    result = run("verify", tmp_path / "store")
    assert "layer 0, expert 7" in result.stdout
    assert result.exit_code == 3
    assert "damaged in 1 places" in result.stderr
    expect_error(run("verify", qwen), "not a store", code=3)


def test_first_use_packs_once(run: Run, qwen: Path) -> None:
    first = run("generate", qwen, "-p", "hello", "-n", "4", "--json")
    again = run("generate", qwen, "-p", "hello", "-n", "4", "--json")
    assert "--no-pack" in first.stderr
    assert again.stderr == ""
    assert json.loads(first.stdout)["text"] == json.loads(again.stdout)["text"]
    (stored,) = json.loads(run("list", "--json").stdout)
    assert (stored["kind"], stored["whole"], stored["model"]) == ("store", True, qwen.name)
    assert stored["format"] == "int4-g64 and int8, dense int8"  # int8 where a matrix is too narrow for groups


def test_no_pack_reads_the_original(run: Run, qwen: Path) -> None:
    result = run("generate", qwen, "-p", "hello", "-n", "4", "--no-pack")
    assert (result.exit_code, result.stderr) == (0, "")
    assert run("list", "--json").stdout == "[]\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--format", "int3"), "int3"),
        (("--group-size", "7"), "group of 7"),
        (("--dense-format", "int2"), "int2"),
    ],
)
def test_formats_that_do_not_exist(run: Run, qwen: Path, arguments: tuple[str, ...], said: str) -> None:
    expect_error(run("pack", qwen, *arguments), said)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 300 kilobytes."""
    with small_disk(tmp_path / "small", 300 << 10) as folder:
        yield folder


def test_a_disk_that_is_too_small(run: Run, qwen: Path, disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expect_error(run("pack", qwen, "-o", disk / "store"), "of disk", code=6)
    monkeypatch.setattr("moe_local.store.packer._assert_room", lambda *given: None)
    expect_error(run("pack", qwen, "-o", disk / "store", "--format", "fp32"), "disk is full", code=6)
    assert "Traceback" not in run("pack", qwen, "-o", disk / "store").stderr


def test_without_room_the_original_is_read(run: Run, qwen: Path, disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOE_LOCAL_HOME", str(disk))
    result = run("generate", qwen, "-p", "hello", "-n", "4", "--json")
    assert "not packed: " in result.stderr
    assert json.loads(result.stdout)["new_tokens"] == 4


def test_quality_against_the_original(run: Run, qwen: Path, tmp_path: Path) -> None:
    run("pack", qwen, "-o", tmp_path / "store", "--format", "int8")
    (tmp_path / "text").write_text("The quick brown fox jumps over the lazy dog. " * 30)
    arguments = ("--text", tmp_path / "text", "--window", "64", "--json")
    out = json.loads(run("eval", tmp_path / "store", "--against", qwen, *arguments).stdout)
    assert 0 <= out["kl_divergence"] < 0.5
    assert out["top1_agreement"] > 0.5
