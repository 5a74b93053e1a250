"""Plans for a device with memory of its own."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from moe_local import Options, Sampling, load
from moe_local.errors import BudgetError
from moe_local.experts.next_router import next_routers
from moe_local.memory.accelerator import find, gpus, out_of_memory
from moe_local.planning.formulas import router_copy_bytes
from moe_local.planning.machines import DRIVER
from moe_local.planning.placement import make_plan
from moe_local.planning.plan_load import plan_load, vram_budgets
from moe_local.store import first_use, pack
from moe_local.testing import architecture, write_tiny_checkpoint
from moe_local.testing.pretend_cuda import PretendCuda, can_pretend, pretend_cuda
from moe_local.units import GIB, MIB

pytestmark = pytest.mark.skipif(not can_pretend(), reason="torch has CUDA kernels of its own")
GREEDY = Sampling(max_new_tokens=4, temperature=0)
SMALL = {"device": "cuda", "context": 128}


@pytest.fixture(autouse=True)
def _nothing_is_said_of_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pretend GPU has none."""
    monkeypatch.setattr("moe_local.planning.plan_load.trouble", lambda device: None)


@pytest.fixture
def gpu() -> Iterator[PretendCuda]:
    with pretend_cuda(memory=8 * GIB, others=3 * GIB) as device:
        yield device


@pytest.fixture(scope="module")
def bf16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("bf16")
    return write_tiny_checkpoint(architecture("qwen3_moe"), directory, dtype=torch.bfloat16)


def test_what_other_programs_hold_is_not_ours(gpu: PretendCuda, qwen: Path) -> None:
    plan = plan_load(qwen, Options(**SMALL)).plan  # type: ignore[arg-type]
    assert (plan.vram_overhead, plan.vram) == (DRIVER, DRIVER + int(5 * GIB * 0.9))
    asked = plan_load(qwen, Options(vram=2 * GIB, **SMALL))  # type: ignore[arg-type]
    assert (asked.plan.vram, asked.notes) == (2 * GIB, ())


def test_more_vram_than_is_free_is_cut_and_said(gpu: PretendCuda, qwen: Path) -> None:
    found = plan_load(qwen, Options(vram=8 * GIB, **SMALL))  # type: ignore[arg-type]
    assert found.plan.vram == DRIVER + 5 * GIB
    assert "VRAM budget of 8 GiB is more than is free" in found.notes[0]


def test_a_model_that_is_there_already_is_counted(gpu: PretendCuda, qwen: Path) -> None:
    held = torch.empty(GIB, dtype=torch.uint8, device="cuda")
    assert vram_budgets(find("cuda"))[:2] == (DRIVER + held.nbytes, DRIVER + 5 * GIB)


def test_experts_that_the_device_holds_are_not_held_twice(gpu: PretendCuda, qwen: Path) -> None:
    with load(qwen, Options(**SMALL)) as engine:  # type: ignore[arg-type]
        plan = engine.plan
        assert plan.device_slots == plan.needs.experts
        assert plan.host_slots == (0,) * len(plan.needs.experts)
        assert gpu.pinned_bytes == plan.host_bytes == plan.host_spare * plan.needs.slot > 0
        assert engine._experts._prefetcher is None
        engine.generate("the hen", GREEDY)
        read = engine.stats()["bytes_read"]
        engine.generate("the hen", GREEDY)
        assert engine.stats()["bytes_read"] == read


def test_a_layer_that_is_not_whole_above_has_its_place_below(qwen: Path) -> None:
    needs = replace(plan_load(qwen, Options(device="cpu", context=128)).plan.needs, experts=(2, 8, 8, 8))
    plan = make_plan(needs, ram=GIB, vram=needs.resident_bytes + (needs.all_experts - 1) * needs.slot)
    kept = list(zip(plan.device_slots, plan.host_slots or (), needs.experts, strict=True))
    assert any(above < count for above, _, count in kept)
    assert all(below == (0 if above == count else count) for above, below, count in kept)
    assert plan.host_spare > 0


@pytest.mark.parametrize(("capability", "dtype"), [((7, 5), torch.float16), ((8, 0), torch.bfloat16)])
def test_bfloat16_only_where_there_are_instructions_for_it(
    bf16: Path, capability: tuple[int, int], dtype: torch.dtype
) -> None:
    with pretend_cuda(capability=capability):
        with load(bf16, Options(**SMALL)) as engine:  # type: ignore[arg-type]
            assert engine.load_plan.dtype == engine.model.dtype == dtype
            assert any("float16" in note for note in engine.notes) == (dtype == torch.float16)
            assert engine.generate("the hen", GREEDY).new_tokens == 4
        asked = plan_load(bf16, Options(dtype="bfloat16", **SMALL))  # type: ignore[arg-type]
        assert (asked.dtype, asked.notes) == (torch.bfloat16, ())


def test_a_large_matrix_is_decoded_in_parts_that_the_plan_knows(
    mixtral: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = pack(first_use.plan(mixtral, first_use.choose("int8")), tmp_path / "store")
    with pretend_cuda():
        whole = plan_load(store, Options(**SMALL)).plan.needs.workspace  # type: ignore[arg-type]
        with load(store, Options(**SMALL)) as engine:  # type: ignore[arg-type]
            wanted = engine.model(torch.tensor([[5, 6, 7]], device="cuda")).logits.cpu()
        monkeypatch.setattr("moe_local.model.buffers._DECODED", 2048)
        parts = plan_load(store, Options(**SMALL)).plan.needs.workspace  # type: ignore[arg-type]
        with load(store, Options(**SMALL)) as engine:  # type: ignore[arg-type]
            found = engine.model(torch.tensor([[5, 6, 7]], device="cuda")).logits.cpu()
            head = engine.model.get_output_embeddings()
            assert len(head._held["multiply"]) == -(-head.out_features // (2048 // head.in_features))
    torch.testing.assert_close(found, wanted)
    assert parts < whole


def test_memory_that_ran_out_is_said_with_figures() -> None:
    with pretend_cuda(memory=GIB, others=0):
        held = torch.empty(900 * MIB, dtype=torch.uint8, device="cuda")
        with pytest.raises(torch.OutOfMemoryError) as caught:
            torch.empty(held.nbytes, dtype=torch.uint8, device="cuda")
        said = out_of_memory(caught.value)
    assert isinstance(said, BudgetError) and said.minimum == held.nbytes
    assert "124 MiB of 1 GiB free" in str(said) and "--vram" in str(said)


def test_a_budget_that_was_given_is_a_fence(gpu: PretendCuda, qwen: Path) -> None:
    """Raised and lowered with it, and gone when the engine is."""
    budget = DRIVER + 200 * MIB
    with load(qwen, Options(vram=budget, **SMALL)) as engine:  # type: ignore[arg-type]
        assert engine.generate("the hen", GREEDY).new_tokens == 4
        assert gpu.memory.peak <= 200 * MIB
        with pytest.raises(torch.OutOfMemoryError) as caught:
            torch.empty(201 * MIB - gpu.memory.live, dtype=torch.uint8, device="cuda")
        said = str(out_of_memory(caught.value))
        assert "more than --vram allows" in said and "200.00 MiB allowed" in said and "give more --vram" in said
        engine.resize(vram=budget + 100 * MIB)
        held = torch.empty(201 * MIB - gpu.memory.live, dtype=torch.uint8, device="cuda")
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(100 * MIB, dtype=torch.uint8, device="cuda")
        with pytest.raises(BudgetError):
            engine.resize(vram=1)
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(100 * MIB, dtype=torch.uint8, device="cuda")
        del held
    assert torch.empty(GIB, dtype=torch.uint8, device="cuda").nbytes == GIB


def test_what_nobody_bounded_has_no_fence(gpu: PretendCuda, qwen: Path) -> None:
    with load(qwen, Options(**SMALL)):  # type: ignore[arg-type]
        free = gpu.memory.free
        assert torch.empty(free, dtype=torch.uint8, device="cuda").nbytes == free


def test_a_fence_is_gone_when_loading_fails(gpu: PretendCuda, qwen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("moe_local.engine.load_tokenizer", fail)
    with pytest.raises(KeyboardInterrupt):
        load(qwen, Options(vram=DRIVER + 200 * MIB, **SMALL))  # type: ignore[arg-type]
    assert torch.empty(GIB, dtype=torch.uint8, device="cuda").nbytes == GIB


def test_routers_that_are_copied_for_reading_ahead_are_planned_for(gpu: PretendCuda, qwen: Path) -> None:
    with load(qwen, Options(**SMALL)) as engine:  # type: ignore[arg-type]
        before, config = gpu.memory.live, engine.model.config
        copies = next_routers(engine.model, engine.load_plan.catalog)
        taken = gpu.memory.live - before
        experts = [layer.experts for layer in engine.load_plan.catalog.layers]
        assert copies is not None
        assert 0 < taken <= router_copy_bytes(experts, config.hidden_size, in_ram=False)


def test_a_closed_engine_leaves_the_device_as_it_was(gpu: PretendCuda, qwen: Path) -> None:
    """At once, without the cycle collector: another model may be loaded next."""
    gc.disable()
    try:
        with load(qwen, Options(experts=0.5, **SMALL)) as engine:  # type: ignore[arg-type]
            engine.generate("the hen", GREEDY)
            assert gpu.memory.live > 0 and gpu.pinned_bytes > 0
        assert (gpu.memory.live, gpu.pinned_bytes) == (0, 0)
    finally:
        gc.enable()


def test_a_device_by_number(gpu: PretendCuda) -> None:
    assert [each.name for each in gpus()] == ["Pretend GPU"]
    assert replace(find("cuda:0")) == gpus()[0]


def test_a_gpu_without_kernels_is_told_of(gpu: PretendCuda, qwen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moe_local.planning.plan_load.trouble", lambda device: "triton is not installed")
    (note,) = plan_load(qwen, Options(**SMALL)).notes  # type: ignore[arg-type]
    assert note.endswith("Pretend GPU, which is slow: triton is not installed")
