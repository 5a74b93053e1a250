"""`moe-local recommend`: this machine, measured, and others by name."""

from __future__ import annotations

import json

import pytest

from moe_local.planning.known_models import shipped
from moe_local.planning.machines import profiles

from .conftest import Run, expect_error


def test_this_machine_is_measured(run: Run) -> None:
    out = json.loads(run("recommend", "--json").stdout)
    machine = out["machine"]
    assert machine["name"] == "this machine" and machine["ram"] > 0
    assert machine["memory_bandwidth"] > 0.5 and machine["disk_bandwidth"] > 0.01
    assert len(out["models"]) == len(shipped())
    assert len({tuple(row) for row in out["models"]}) == 1
    for row in out["models"]:
        assert (row["command"] is None) == (row["verdict"] == "too large") == (row["remedy"] is not None)


@pytest.mark.parametrize("name", list(profiles()))
def test_others_fit_the_screen(run: Run, name: str) -> None:
    result = run("recommend", "--profile", name)
    assert result.exit_code == 0, result.output
    assert all(len(line) <= 100 for line in result.stdout.splitlines())
    assert "Try: moe-local chat " in result.stdout and "…" not in result.stdout
    assert all(verdict in result.stdout for verdict in ("fluent", "note:"))


def test_other_memory(run: Run) -> None:
    def models(*more: str) -> dict[str, str]:
        found = json.loads(run("recommend", "--json", *more).stdout)["models"]
        return {row["model"]: row["verdict"] for row in found}

    large = "openai/gpt-oss-120b"
    assert models("--profile", "cpu-only", "--ram", "8GiB")[large] == "slow"
    assert models("--profile", "rtx-4090", "--vram", "96GiB", "--ram", "128GiB")[large] == "fluent"
    assert models("--ram", "2TiB")["deepseek-ai/DeepSeek-V3"] != "too large"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--profile", "rtx-3061"), "rtx-3060"),
        (("--context", "0"), "not a number of tokens"),
        (("--ram", "much"), "is not a size"),
        (("--profile", "cpu-only", "--vram", "8GiB"), "no GPU"),
        (("--vram", "8GiB"), "no GPU"),
    ],
)
def test_what_makes_no_sense(run: Run, given: tuple[str, ...], said: str) -> None:
    expect_error(run("recommend", *given), said)
