"""What is answered does not depend on the device: three tiers at half of the experts, against a CPU's one tier.

Each test runs with the device tier in RAM as well, which shows that the test itself is right.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from moe_local import Options, Request, Sampling, load
from moe_local.bench import live
from moe_local.bench.workload import Prompt
from moe_local.engine import Engine
from moe_local.experts.misses import AUTO, UPLOAD, ZERO_COPY
from moe_local.experts.misses import CPU as MULTIPLY
from moe_local.memory.accelerator import find
from moe_local.planning.calibration import Calibration, write_calibration
from moe_local.store import first_use, pack
from moe_local.testing import architecture, write_tiny_checkpoint
from moe_local.testing.pretend_cuda import can_pretend, pretend_cuda
from moe_local.testing.pretend_mps import pretend_mps
from moe_local.testing.pretend_triton import pretend_triton
from moe_local.units import MIB

ARCHITECTURES = ("qwen3_moe", "gpt_oss", "deepseek_v2")
GREEDY = Sampling(max_new_tokens=8, temperature=0)
PROMPTS = ("the hen and", "one two three four", "why")
CPU = Options(device="cpu", context=256, dtype="float32", max_sequences=3)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With experts that every kind of device multiplies by in float32."""
    folder = tmp_path_factory.mktemp("models")
    checkpoint = write_tiny_checkpoint(architecture(request.param), folder / request.param)
    return pack(first_use.plan(checkpoint, first_use.choose("int8", dense="keep")), folder / "store")


PRETENDED = pytest.param("pretended", marks=pytest.mark.skipif(not can_pretend(), reason="torch has CUDA's kernels"))


PRETENDED_MPS = pytest.param("mps", marks=pytest.mark.skipif(not can_pretend(), reason="torch has Metal's kernels"))


@pytest.fixture(params=["cpu", PRETENDED, PRETENDED_MPS, pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    pretended = {"pretended": pretend_cuda, "mps": pretend_mps}.get(request.param, nullcontext)
    with pretended():  # type: ignore[operator]
        yield "cuda" if request.param == "pretended" else request.param


@pytest.fixture(params=[UPLOAD, MULTIPLY, AUTO])
def tiers(
    request: pytest.FixtureRequest, device: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Engine]:
    """Device, host and disk; misses are uploaded, or multiplied by in RAM, or some of them."""
    monkeypatch.setenv("MOE_LOCAL_HOME", str(tmp_path))
    if request.param == AUTO:
        if device != "cuda":
            pytest.skip("in one memory nothing is measured")
        write_calibration(Calibration(find(device).name, torch.get_num_threads(), 1e-6, 1e-6, {1: 1e-6, 4: 2e-6}))
    yield from _tiers(device, model, request.param)


def _tiers(device: str, model: Path, misses: str) -> Iterator[Engine]:
    vram = {"vram": 512 * MIB} if device == "cpu" else {}
    options = Options(
        device=device,
        context=256,
        dtype="float32",
        max_sequences=3,
        experts=0.5,
        host_experts=0.5,
        misses=misses,
        **vram,  # type: ignore[arg-type]
    )
    with load(model, options) as engine:
        assert engine.plan.host_slots is not None
        yield engine
        stats = engine.stats()
        assert (stats["computed_in_ram"] > 0) == (misses != UPLOAD)
        in_vain = stats["uploaded_ahead"] - stats["uploaded_ahead_hits"]
        uploaded = stats["misses"] - stats["computed_in_ram"] + in_vain
        assert stats["bytes_uploaded"] == uploaded * engine.plan.needs.slot


@pytest.mark.parametrize("device", [PRETENDED, pytest.param("cuda", marks=pytest.mark.gpu)], indirect=True)
def test_a_chat_says_the_same_with_experts_read_in_ram(model: Path, device: str) -> None:
    kernels = pretend_triton() if can_pretend() else nullcontext()
    options = Options(device=device, context=256, dtype="float32", experts=0.5, misses=ZERO_COPY)
    with kernels, load(model, options) as engine, load(model, CPU) as cpu:
        wanted, found = cpu.chat(GREEDY), engine.chat(GREEDY)
        for prompt in PROMPTS:
            assert found.send(prompt).token_ids == wanted.send(prompt).token_ids
        assert engine.stats()["zero_copied"] > 0
        requests = [Request(prompt, GREEDY) for prompt in PROMPTS]
        answers = [answer.token_ids for answer in engine.batch(requests[:1])]
        assert answers == [answer.token_ids for answer in cpu.batch(requests[:1])]


def test_a_chat_says_the_same(model: Path, tiers: Engine) -> None:
    with load(model, CPU) as cpu:
        wanted, found = cpu.chat(GREEDY), tiers.chat(GREEDY)
        for prompt in PROMPTS:
            assert found.send(prompt).token_ids == wanted.send(prompt).token_ids
    stats = tiers.stats()
    assert stats["bytes_uploaded"] > 0 and stats["bytes_read"] > 0 and stats["host_hits"] > 0


def test_a_batch_says_the_same(model: Path, tiers: Engine) -> None:
    requests = [Request(prompt, GREEDY, tag=prompt) for prompt in PROMPTS]
    with load(model, CPU) as cpu:
        wanted = {answer.request.tag: answer.token_ids for answer in cpu.batch(requests)}
    assert {answer.request.tag: answer.token_ids for answer in tiers.batch(requests)} == wanted


def test_sampling_is_done_in_a_batch(tiers: Engine) -> None:
    sampled = Sampling(max_new_tokens=6, temperature=1.0, top_k=20, top_p=0.9, repetition_penalty=1.1, seed=3)
    first, second = (
        [list(answer.token_ids) for answer in tiers.batch([Request("the hen", sampled)])] for _ in range(2)
    )
    assert first == second


def test_a_bench_measures_it(tiers: Engine) -> None:
    request = live.Request(prompts=(Prompt("one", "the hen and"),), new_tokens=6, repeat=1)
    report = live.measure(tiers, request, lambda stage, fraction: None)
    assert report["summary"]["decode_tokens_per_second"]["median"] > 0


def test_experts_that_the_cpu_has_no_kernels_for_are_uploaded_and_that_is_said(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    plain = write_tiny_checkpoint(architecture("qwen3_moe"), tmp_path_factory.mktemp("plain"))
    options = Options(device="cpu", context=128, experts=0.5, vram=512 * MIB, misses=MULTIPLY)
    with load(plain, options) as engine:
        assert any("no kernels for this model's experts" in note for note in engine.notes)
        engine.generate("the hen", GREEDY)
        assert engine.stats()["computed_in_ram"] == 0 < engine.stats()["bytes_uploaded"]
