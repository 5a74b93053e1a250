"""`benchmarks/gpu`: all of it on the pretend device, and its parts that need none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks.gpu.engines import limit
from benchmarks.gpu.measuring import Bench, Measurement, Say
from benchmarks.gpu.scale import PRETENDED, REAL, models
from moe_local.kernels import triton_dense, triton_experts
from moe_local.testing.pretend_cuda import can_pretend

ROOT = Path(__file__).parents[2]
# What a pretend device has no kernels for.
NOT_PRETENDED = {("matrix", "nf4"), ("experts", None), ("crossing", None), ("peer", "accelerate, bf16, half in RAM")}


def say_and(how: str, say: Say) -> None:
    say(first=1)
    if how == "raise":
        raise ValueError("a reason\nand more")
    if how == "sleep":
        time.sleep(60)
    if how == "die":
        os._exit(3)
    say(second=2)


def measured(how: str, seconds: float = 20.0) -> dict[str, object]:
    return Bench(60.0).measure(Measurement("kind", {"of": how}, partial(say_and, how), seconds))


def test_what_is_said_is_kept() -> None:
    found = measured("nothing")
    wanted = {"kind": "kind", "of": "nothing", "first": 1, "second": 2, "failed": None}
    assert {name: found[name] for name in wanted} == wanted


@pytest.mark.parametrize(
    ("how", "seconds", "reason"),
    [
        ("raise", 20.0, "ValueError: a reason"),
        ("sleep", 10.0, "not ended after 10 s"),
        ("die", 20.0, "its process ended with 3"),
        ("nothing", 0.5, "not begun: no time was left"),
    ],
)
def test_a_failure_costs_itself_only(how: str, seconds: float, reason: str) -> None:
    found = measured(how, seconds)
    assert found["failed"] == reason
    assert found.get("first") == (1 if seconds > 1 else None)
    assert "second" not in found


def test_time_is_shared() -> None:
    bench = Bench(100.0)
    with bench.within(0.25):
        assert bench.left == pytest.approx(25, abs=1)
    assert bench.left == pytest.approx(100, abs=1)


def test_the_limit_is_the_slowest_link_alone() -> None:
    carried = {"memory": 2e9, "upload": 1e9, "disk": 5e8}
    found = limit(carried, {"memory": 100.0, "upload": 10.0, "disk": None}, 8.0)
    assert (found["limit_tokens_per_second"], found["limit_by"], found["of_limit"]) == (10.0, "upload", 0.8)
    found = limit(carried, {"memory": 100.0, "upload": 10.0, "disk": 1.0}, 1.0)
    assert (found["limit_tokens_per_second"], found["limit_by"], found["disk_gb_per_second"]) == (2.0, "disk", 1.0)
    assert limit(carried, {"memory": None, "upload": 10.0}, 8.0)["limit_tokens_per_second"] is None


def test_models_have_the_shapes_that_are_promised() -> None:
    found = {model.name: REAL.config(model) for model in models(48)}
    layers = {name: config.num_hidden_layers for name, config in found.items()}
    assert layers == {"qwen3-30b-a3b": 48, "gpt-oss-20b": 24, "mixtral-8x7b": 8}
    assert {name: config.hidden_size for name, config in found.items()} == {
        "qwen3-30b-a3b": 2048, "gpt-oss-20b": 2880, "mixtral-8x7b": 4096
    }  # fmt: skip
    fewer = REAL.config(models(48)[1], layers=6)
    assert len(fewer.layer_types) == fewer.num_hidden_layers == 6


def test_the_kernels_switches_are_where_they_are_turned() -> None:
    assert isinstance(triton_dense._VECTOR_ROWS, int)
    work = triton_experts._Work(torch.zeros(2, 64), torch.zeros(2, 1, dtype=torch.int64), 4, 32, 64, {})
    assert work.few and work._inner.shape == (2, 32) and work._outputs.shape == (2, 64)


@pytest.mark.skipif(not can_pretend(), reason="torch has CUDA kernels of its own")
def test_all_of_it_pretended(tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    command = [sys.executable, "-m", "benchmarks.gpu", "--pretend", "--json", str(file), "--minutes", "4"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    whole = json.loads(file.read_text())
    assert whole["pretended"] is True
    failed = [found for found in whole["results"] if found["failed"]]
    for found in failed:
        about = found.get("peer", found.get("format"))
        assert {(found["kind"], about), (found["kind"], None)} & NOT_PRETENDED, found
    engines = [found for found in whole["results"] if found["kind"] == "engine"]
    assert len(engines) == len(models(48)) * len(PRETENDED.settings)
    for found in engines:
        assert found["tokens_per_second"] > 0 and found["vram_within_budget"], found
        assert bool(found["bytes_uploaded_per_token"]) == (found["device_share"] < 1), found
        assert bool(found["bytes_read_per_token"]) == (found["host_share"] < 1), found
        assert f"| {found['model']} |" in done.stdout
    assert "Pretend GPU" in done.stdout
    assert all(found["failed"] in done.stdout for found in failed)
