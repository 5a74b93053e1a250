"""`moe-local plan`: estimates for machines that are not here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from moe_local.planning.known_models import shipped
from moe_local.planning.machines import SYSTEM, profiles
from moe_local.testing import architecture, write_tiny_checkpoint
from tests.processes import python

from .conftest import Run, expect_error

QWEN = "Qwen/Qwen3-30B-A3B"


def test_one_machine_in_detail(run: Run) -> None:
    result = run("plan", QWEN, "--profile", "rtx-3060-12gb")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("Estimate")
    for said in ("tokens/s", "limited by", "in VRAM", "over PCIe", "twice the VRAM", "twice the RAM", "Python"):
        assert said in result.stdout


@pytest.mark.parametrize("model", [known["name"] for known in shipped().values()])
def test_every_model_on_every_machine_fits_the_screen(run: Run, model: str) -> None:
    result = run("plan", model, "--context", "1024")
    if result.exit_code:  # the largest on none
        expect_error(result, "too small", code=5)
        assert model == "deepseek-ai/DeepSeek-V3"
        return
    assert "Estimate" in result.stdout.splitlines()[0]
    assert all(len(line) <= 100 for line in result.stdout.splitlines())
    assert "…" not in result.stdout
    assert all(name in result.stdout for name in profiles())


def test_machines_in_the_order_asked(run: Run) -> None:
    out = run("plan", QWEN, "--profile", "rtx-4090, cpu-only", "--profile", "rtx-3090,rtx-4090", "--json").stdout
    assert [machine["profile"] for machine in json.loads(out)["machines"]] == ["rtx-4090", "cpu-only", "rtx-3090"]


def test_json_has_the_same_keys_for_every_machine(run: Run) -> None:
    out = json.loads(run("plan", "zai-org/GLM-4.5-Air", "--json").stdout)
    assert out["estimate"] is True
    assert (out["format"], out["group_size"], out["dense_format"], out["context"]) == ("int4", 64, "int8", 4096)
    assert len({tuple(machine) for machine in out["machines"]}) == 1
    small = next(machine for machine in out["machines"] if machine["profile"] == "rtx-3060-12gb")
    assert (small["fits"], small["tokens_per_second"]) == (False, None)
    assert small["least_bytes"] > 12 << 30
    assert "--vram" in small["remedy"]
    large = next(machine for machine in out["machines"] if machine["profile"] == "rtx-5090")
    assert large["fits"]
    low, high = large["tokens_per_second"]
    assert 0 < low < high
    assert large["tokens_per_second_twice_vram"][0] > low


def test_other_memory(run: Run) -> None:
    def ask(*more: str) -> dict[str, object]:
        found = json.loads(run("plan", QWEN, "--profile", "rtx-3090", "--json", *more).stdout)["machines"][0]
        assert isinstance(found, dict)
        return found

    assert ask("--vram", "8GiB", "--ram", "16GiB")["vram"] == 8 << 30
    assert ask("--vram", "0")["bound_by"] == "ram"
    everywhere = json.loads(run("plan", QWEN, "--vram", "16GiB", "--json").stdout)["machines"]
    assert {machine["vram"] for machine in everywhere} == {16 << 30}


def test_formats_follow_the_model_or_the_user(run: Run) -> None:
    def record(model: str, *more: str) -> tuple[str, int]:
        out = json.loads(run("plan", model, "--profile", "rtx-5090", "--json", *more).stdout)
        return out["format"], out["record_bytes"]

    assert record("openai/gpt-oss-20b")[0] == "mxfp4"
    assert record("openai/gpt-oss-20b", "--format", "int4")[0] == "int4"
    assert record(QWEN) < record(QWEN, "--group-size", "32") < record(QWEN, "--format", "int8")


def test_pessimism(run: Run) -> None:
    speeds = [
        json.loads(run("plan", QWEN, "--profile", "rtx-3060-12gb", "--locality", name, "--json").stdout)["machines"][
            0
        ]
        for name in ("uniform", "auto")
    ]
    assert speeds[0]["tokens_per_second"][1] < speeds[1]["tokens_per_second"][1]


def test_a_checkpoint_and_a_config(run: Run, qwen: Path) -> None:
    for model in (qwen, qwen / "config.json"):
        out = json.loads(run("plan", model, "--profile", "cpu-only", "--json").stdout)
        assert (out["model"], out["architecture"], out["context"]) == (str(model), "qwen3_moe", 512)


@pytest.mark.parametrize(
    ("arguments", "said", "code"),
    [
        (["x/y"], "moe-local pull", 3),
        ([QWEN, "--profile", "cray-1"], "rtx-3090", 1),
        ([QWEN, "--profile", "rtx-3060-12gb", "--vram", "2GiB"], "--vram", 5),
        ([QWEN, "--profile", "rtx-3060-12gb", "--ram", "1GiB"], "--ram", 5),
        ([QWEN, "--profile", "cpu-only", "--vram", "2GiB"], "has no GPU", 1),
        ([QWEN, "--ram", "much"], "not a size", 1),
        ([QWEN, "--format", "int5"], "int4", 1),
        ([QWEN, "--group-size", "7"], "32, 64, 128", 1),
        ([QWEN, "--dense-format", "fp3"], "keep", 1),
        ([QWEN, "--context", "0"], "--context 0", 1),
        ([QWEN, "--context", "1000000"], "40960 positions", 1),
        ([QWEN, "--locality", "zipf"], "uniform", 1),
    ],
    ids=str,
)
def test_refusals(run: Run, arguments: list[str], said: str, code: int) -> None:
    expect_error(run("plan", *arguments), said, code=code)


def test_other_architectures(run: Run, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    expect_error(run("plan", tmp_path), "qwen3_moe", code=4)


def test_names_are_printed_as_they_are(run: Run, qwen: Path, tmp_path: Path) -> None:
    odd = tmp_path / "x[" / "y]"
    odd.parent.mkdir()
    odd.symlink_to(qwen)
    assert "x[/y]" in run("plan", odd, "--profile", "cpu-only").stdout.replace("\n", "")


def test_help_teaches(run: Run) -> None:
    said = " ".join(run("plan", "--help").stdout.split())
    assert "moe-local plan openai/gpt-oss-120b" in said


def test_light() -> None:
    """Nothing that takes long is imported."""
    code = (
        "import sys; from moe_local.cli.main import app;"
        f"app(['plan', '{QWEN}'], standalone_mode=False);"
        "assert not {'torch', 'transformers', 'numpy'} & sys.modules.keys()"
    )
    python(code)


@pytest.mark.parametrize("profile", ["cpu-only", "rtx-3060-12gb"])
def test_the_same_as_inspect(run: Run, tmp_path: Path, profile: str) -> None:
    """Of another machine, whatever this one is: its device, and what its system and driver take."""
    model = write_tiny_checkpoint(architecture("qwen3_moe"), tmp_path / "model", dtype=torch.bfloat16)
    asked = ("--profile", profile, "--context", "512", "--json")
    planned = json.loads(run("plan", model, "--format", "bf16", "--dense-format", "keep", *asked).stdout)
    inspected = json.loads(run("inspect", model, *asked).stdout)
    for name in ("record_bytes", "experts", "experts_per_token", "kv_cache_bytes"):
        assert planned[name] == inspected[name], name
    assert planned["workspace_bytes"] == pytest.approx(
        inspected["workspace_bytes"], abs=1 << 16
    )  # gate and up in one
    assert planned["dense_bytes"] == pytest.approx(inspected["dense_bytes"], abs=1024)  # tables of positions
    assert inspected["process_bytes"] == SYSTEM
    assert inspected["vram_budget"] == planned["machines"][0]["vram"]
    assert (inspected["host_slots"] is None) == (profile == "cpu-only")
