"""`inspect`, `doctor`, `pull`, and the command line as a whole."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from moe_local.cli.versions import TESTED_UP_TO, notes
from moe_local.errors import is_disk_full
from moe_local.formats.registry import packable_names
from moe_local.kernels import native
from moe_local.planning.machines import profiles
from tests import processes
from tests.processes import MOE, python, small_disk

from .conftest import Run, expect_error


def test_inspect_counts(run: Run, qwen: Path) -> None:
    result = run("inspect", qwen, "--json", "--context", "128", "--experts", "50%")
    assert result.exit_code == 0, result.output
    out = json.loads(result.stdout)
    assert out["architecture"] == "Qwen3MoeForCausalLM"
    assert out["experts"] == 8 * out["moe_layers"]
    assert out["device_slots"] == [4] * out["moe_layers"]
    assert out["ram_planned"] <= out["ram_budget"]
    assert out["expert_bytes"] + out["dense_bytes"] >= out["checkpoint_bytes"] - 10_000


def test_inspect_reads_for_people(run: Run, qwen: Path) -> None:
    result = run("inspect", qwen, "--context", "128")
    for said in ("experts in RAM", "KV cache", "dense weights", "caching pays from"):
        assert said in result.stdout


@pytest.mark.parametrize("name", list(profiles()))
def test_inspect_plans_for_every_profile(run: Run, qwen: Path, name: str) -> None:
    result = run("inspect", qwen, "--json", "--profile", name)
    assert result.exit_code == 0, result.output
    out = json.loads(result.stdout)
    assert (out["host_slots"] is None) == (profiles()[name].vram == 0)
    assert (out["ram_budget"], out["notes"]) == (profiles()[name].ram, [])


def test_inspect_prints_names_as_they_are(run: Run, qwen: Path, tmp_path: Path) -> None:
    odd = tmp_path / "x[" / "y]"
    odd.parent.mkdir()
    odd.symlink_to(qwen)
    result = run("inspect", odd, "--context", "128")
    assert "x[/y]" in result.stdout.replace("\n", "")


def test_inspect_refuses(run: Run, qwen: Path) -> None:
    expect_error(run("inspect", qwen, "--ram", "10MB"), "--ram", code=5)
    expect_error(run("inspect", qwen, "--profile", "cray-1"), "rtx-3090")


def test_doctor(run: Run, tmp_path: Path) -> None:
    out = json.loads(run("doctor", "--json").stdout)
    assert out["memory"] > out["memory_available"] > 0
    assert out["versions"]["torch"]
    assert out["chosen"]["profile"] in profiles()
    assert out["disk"]["read"] > 0
    assert list(Path(out["cache_folder"]).iterdir()) == []
    assert out["notes"] == notes(out["versions"])
    assert "nearest profile" in run("doctor").stdout


@pytest.mark.skipif(native.missing() is not None, reason="the native kernels are not there")
def test_doctor_tells_who_multiplies(run: Run) -> None:
    found = json.loads(run("doctor", "--json").stdout)["kernels"]
    assert found["native"] == native.machine().processor
    assert found["why_not"] is found["remedy"] is None
    assert found["threads"] in ("OpenMP", "own")
    assert list(found["formats"]) == packable_names()
    assert found["formats"]["int4"] == found["formats"]["int8"] == f"native {found['native']}"
    assert found["formats"]["bf16"] == "decode"
    assert f"{found['native']} for int4, int8" in " ".join(run("doctor").stdout.split())


def test_doctor_without_native_kernels(tmp_path: Path) -> None:
    environment = {**os.environ, "MOE_LOCAL_HOME": str(tmp_path), native.VARIABLE: "off"}
    found = json.loads(processes.run([*MOE, "doctor", "--json"], env=environment).stdout)["kernels"]
    assert found["native"] is found["threads"] is None
    assert (native.VARIABLE in found["why_not"]) and found["remedy"] == f"unset {native.VARIABLE}"
    assert set(found["formats"].values()) == {"decode"}
    told = processes.run([*MOE, "doctor"], env=environment).stdout
    assert f"unset {native.VARIABLE}" in " ".join(told.split())


@pytest.mark.skipif(native.missing() is not None, reason="the native kernels are not there")
def test_doctor_of_a_processor_that_this_is_not(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(native.VARIABLE, "z80")
    monkeypatch.setattr(native, "_machine", native._machine.__wrapped__)  # which reads it once
    found = json.loads(run("doctor", "--json").stdout)["kernels"]
    assert found["native"] is None and "z80" in found["why_not"] and "portable" in found["remedy"]
    assert found["formats"]["int4"] == "none"


@pytest.mark.parametrize(
    ("name", "number", "said"),
    [
        ("transformers", "5.25.0", "newer than 5.24.0, the newest that was tested"),
        ("transformers", "5.24.0", None),
        ("transformers", "5.17.0", None),
        ("transformers", "5.16.2", "pip install 'transformers"),
        ("transformers", "6.0.0", "not one that moe-local runs with"),
        ("transformers", "5.30.0.dev0", "newer than 5.24.0"),
        ("torch", "2.13.1+cu130", None),
        ("torch", "2.10.0", "pip install 'torch"),
        ("torch", "2.14.0", "pip install 'torch"),
        ("huggingface-hub", "2.5.1", "newer than 2.4"),
        ("huggingface-hub", "0.36.0", "pip install 'huggingface-hub"),
        ("tokenizers", "0.24.0", "newer than 0.23"),
        ("rich", "99", None),
        ("torch", "mine", "cannot be compared"),
        ("bitsandbytes", None, None),
    ],
)
def test_versions_that_doctor_tells(name: str, number: str | None, said: str | None) -> None:
    found = notes({name: number})
    assert (said in found[0]) if said else found == []


def test_what_was_tested_is_allowed() -> None:
    assert notes(dict(TESTED_UP_TO)) == []


def test_doctor_prints_its_notes(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TESTED_UP_TO, "transformers", "5.0")
    assert "note: transformers" in run("doctor").stdout
    assert json.loads(run("doctor", "--json").stdout)["notes"][0].startswith("transformers ")


def test_doctor_without_a_cache_folder(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MOE_LOCAL_HOME", str(tmp_path / "file" / "home"))
    expect_error(run("doctor"), "MOE_LOCAL_HOME", code=6)


def test_help_is_light() -> None:
    """No torch for a help page."""
    code = (
        "import sys; from moe_local.cli.main import app; app(['--help'], standalone_mode=False);"
        "assert 'torch' not in sys.modules"
    )
    assert "chat" in python(code).stdout


@pytest.mark.parametrize("command", ["chat", "generate", "inspect", "pull", "doctor"])
def test_every_command_explains_itself(run: Run, command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) > 5


def test_version(run: Run) -> None:
    assert run("--version").stdout.startswith("moe-local ")


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of one megabyte."""
    with small_disk(tmp_path / "full", 1 << 20) as folder:
        yield folder


def test_a_full_cache_disk(run: Run, full_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOE_LOCAL_HOME", str(full_disk))
    expect_error(run("generate", "-p", "x"), str(full_disk), code=6)
    assert "too full to measure" in run("doctor").stdout


def test_a_real_full_disk_is_recognised(full_disk: Path) -> None:
    with pytest.raises(OSError) as caught:
        (full_disk / "copy").write_bytes(bytes(2 << 20))
    assert is_disk_full(caught.value)
