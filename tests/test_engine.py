"""The engine as Python users meet it: budgets, exactness, failures."""

from __future__ import annotations

import gc
import math
import random
import re
import shutil
import threading
import weakref
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import moe_local
from moe_local import Sampling, paging
from moe_local.engine import Engine, load
from moe_local.errors import BudgetError, CheckpointError, MoeLocalError, StorageError
from moe_local.planning.machines import DRIVER
from moe_local.planning.options import Options
from moe_local.planning.plan_load import plan_load
from moe_local.testing import FailingDisk, SlowDisk, interrupted_after
from moe_local.testing.pretend_cuda import can_pretend, pretend_cuda
from moe_local.units import GIB, MIB

PRETENDED = pytest.param("pretended", marks=pytest.mark.skipif(not can_pretend(), reason="torch has CUDA's kernels"))
PROMPT = "The quick brown fox"
GREEDY = Sampling(max_new_tokens=16, temperature=0)
SEEDED = Sampling(max_new_tokens=16, temperature=1.0, top_k=50, seed=7)


def _answers(engine: Engine) -> tuple[list[int], list[int]]:
    engine.model.generation_config.eos_token_id = None
    return engine.generate(PROMPT, GREEDY).token_ids, engine.generate(PROMPT, SEEDED).token_ids


def test_the_same_tokens_at_every_budget(qwen: Path) -> None:
    with load(qwen, Options(context=128)) as engine:
        wanted = _answers(engine)
        needs, overhead = engine.plan.needs, engine.plan.ram_overhead
    assert wanted[0] != wanted[1]
    smallest = overhead + needs.resident_bytes + (len(needs.experts) + 1) * needs.slot
    for options in (
        Options(context=128, experts=0.5),
        Options(context=128, experts=0.25),
        Options(context=128, experts=0.001),
        Options(context=128, ram=smallest + 64 * MIB, experts=0.001),
        Options(context=128, vram=needs.resident_bytes + 64 * MIB, experts=0.25, host_experts=0.5),
    ):
        with load(qwen, options) as engine:
            assert _answers(engine) == wanted
            assert engine.stats()["misses"] > 0


def test_small_budgets_are_refused_with_one_that_works(qwen: Path) -> None:
    with pytest.raises(BudgetError, match="--ram") as caught:
        plan_load(qwen, Options(ram=10 * MIB, context=128))
    plan_load(qwen, Options(ram=caught.value.minimum + 16 * MIB, context=128))
    with pytest.raises(BudgetError, match="--vram"):
        plan_load(qwen, Options(vram=MIB, context=128))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(1, 700),
    st.none() | st.integers(1, 300),
    st.sampled_from([1, 2, 7, 64, 300]),
    st.sampled_from([1, 40, 300]),
    st.sampled_from([64, 300, 512]),
)
def test_every_refused_budget_names_one_that_runs(
    qwen: Path, ram: int, vram: int | None, sequences: int, each: int, context: int
) -> None:
    options = Options(
        device="cpu",
        ram=ram * MIB,
        vram=None if vram is None else vram * MIB,
        max_sequences=sequences,
        tokens_per_sequence=each,
        context=context,
    )
    try:
        plan_load(qwen, options)
    except BudgetError as error:
        named = {name: int(size) * MIB for name, size in re.findall(r"--(v?ram) (\d+)MiB", str(error))}
        assert plan_load(qwen, replace(options, **named)).plan.ram_used <= named.get("ram", options.ram)  # type: ignore[arg-type]


def test_a_budget_below_a_tokens_set_is_said(qwen: Path) -> None:
    assert "caching only costs" in plan_load(qwen, Options(experts=0.001)).notes[0]
    assert "--experts 25%" in plan_load(qwen, Options(experts=0.001)).notes[0]
    assert plan_load(qwen, Options(experts=0.5)).notes == ()
    assert plan_load(qwen, Options()).notes == ()


def test_on_a_cpu_both_tiers_come_from_ram(qwen: Path) -> None:
    small = {"ram": 2048 * MIB, "context": 128, "device": "cpu"}
    plan = plan_load(qwen, Options(vram=256 * MIB, **small)).plan
    assert plan.vram_used is not None
    assert plan.ram_used == plan.ram_overhead + plan.vram_used + plan.host_bytes <= plan.ram
    with pytest.raises(BudgetError, match="--ram") as caught:
        plan_load(qwen, Options(vram=2048 * MIB, **small))
    assert caught.value.minimum > 2048 * MIB


def test_where_memory_cannot_be_given_back_none_is(qwen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AttributeError("malloc_trim")

    monkeypatch.setattr("moe_local.planning.plan_load.can_release", lambda: False)
    monkeypatch.setattr("moe_local.experts.cache.trim", refuse)
    monkeypatch.setattr("moe_local.memory.slab.release", refuse)
    with load(qwen, Options(context=128, experts=0.25)) as engine:
        assert engine.plan.capacities == ()
        assert engine.generate(PROMPT, GREEDY).new_tokens == 16


def test_a_pass_without_the_head_leaves_room_too(qwen: Path) -> None:
    with load(qwen, Options(context=128)) as engine:
        passes: list[int] = []
        engine.cache.resize_for = passes.append  # type: ignore[method-assign]
        with torch.no_grad():
            engine.model.model(torch.tensor([[5, 6, 7]]))
            engine.model.model(inputs_embeds=torch.zeros(2, 4, engine.model.config.hidden_size))
            engine.model(torch.tensor([[5, 6]]))
        assert passes == [3, 8, 2, 2]


def test_a_closed_engine_says_so(qwen: Path) -> None:
    engine = load(qwen, Options(context=128))
    engine.close()
    with pytest.raises(MoeLocalError, match="closed"):
        engine.generate(PROMPT, GREEDY)
    engine.close()


@pytest.mark.parametrize("options", [Options(context=128), Options(context=128, experts=0.5, vram=512 * MIB)])
def test_a_closed_engine_frees_its_memory_at_once(qwen: Path, options: Options) -> None:
    """Without waiting for the cycle collector, though the engine and a conversation are still there."""
    engine = load(qwen, options)
    session = engine.chat(GREEDY)
    session.send("Hello")
    held = [weakref.ref(each) for each in (engine.model, *engine.model.modules(), *engine.model.parameters())]
    slabs = [tier.slab for tier in (engine.cache._device, engine.cache._host) if tier is not None]
    gc.disable()
    try:
        engine.close()
        assert [found for each in held if (found := each()) is not None] == []
        assert [slab.nbytes for slab in slabs] == [0] * len(slabs)
    finally:
        gc.enable()
    assert session.messages[0]["content"] == "Hello"
    with pytest.raises(MoeLocalError, match="closed"):
        session.send("Still there?")


@pytest.mark.parametrize("device", ["cpu", PRETENDED])
def test_another_budget_for_the_device_while_a_conversation_goes_on(qwen: Path, device: str) -> None:
    large = 1500 * MIB
    with pretend_cuda(memory=4 * GIB) if device == "pretended" else nullcontext():
        options = Options(device="cpu" if device == "cpu" else "cuda", context=128, dtype="float32", vram=large)
        needs = plan_load(qwen, options).plan.needs
        small = needs.resident_bytes + (needs.all_experts - 4) * needs.slot + (0 if device == "cpu" else DRIVER)
        with load(qwen, options) as engine:
            assert engine.plan.share == 1
            session, alone = engine.chat(GREEDY), engine.chat(GREEDY)
            wanted = [alone.send(each).token_ids for each in ("the hen", "why", "and then")]
            found = [session.send("the hen").token_ids]
            before = engine.stats()["misses"]
            engine.resize(vram=small)
            assert 0.3 < engine.plan.share < 1 and engine.plan.vram == small
            assert sum(map(len, engine.cache.residents())) == engine.plan.device_experts
            assert engine.stats()["misses"] == before  # bringing them in again is nobody's miss
            found.append(session.send("why").token_ids)
            assert engine.stats()["misses"] > before
            with pytest.raises(BudgetError, match="--vram"):
                engine.resize(vram=MIB)
            engine.resize(vram=large)
            assert engine.plan.share == 1
            found.append(session.send("and then").token_ids)
    assert found == wanted


def test_another_budget_of_ram_while_a_conversation_goes_on(qwen: Path) -> None:
    options = Options(context=128, dtype="float32")
    needs = plan_load(qwen, options).plan.needs
    with load(qwen, options) as engine:
        assert engine.plan.share == 1
        others = engine.plan.ram_overhead + needs.resident_bytes
        small = others + needs.least_slots_bytes  # passes of one token have what long ones take beside the experts
        session, alone = engine.chat(GREEDY), engine.chat(GREEDY)
        wanted = [alone.send(each).token_ids for each in ("the hen", "why", "and then")]
        found = [session.send("the hen").token_ids]
        large = engine.plan.ram
        engine.resize(ram=small)
        assert engine.plan.ram == small and engine.plan.capacities[-1][1].kept == (1, 1, 1, 1)
        found.append(session.send("why").token_ids)
        with pytest.raises(BudgetError, match="--ram"):
            engine.resize(ram=MIB)
        with pytest.raises(BudgetError, match="than this machine can give"):
            engine.resize(ram=1 << 60)
        engine.resize(ram=large)
        assert engine.plan.share == 1
        found.append(session.send("and then").token_ids)
    assert found == wanted


def test_where_experts_are_in_ram_alone_there_is_no_device_to_resize(qwen: Path) -> None:
    with load(qwen, Options(context=128)) as engine, pytest.raises(MoeLocalError, match="no memory of a device"):
        engine.resize(vram=512 * MIB)


def test_memory_that_cannot_be_had_leaves_the_former_budget(qwen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = Options(context=128, dtype="float32", experts=0.5, vram=512 * MIB)
    with load(qwen, options) as engine:
        wanted, plan = engine.generate("the hen", GREEDY).token_ids, engine.plan
        made, tried = paging.make_cache, []

        def refused(*given: Any, **named: Any) -> Any:
            tried.append(given)
            if len(tried) == 1:
                raise KeyboardInterrupt
            return made(*given, **named)

        monkeypatch.setattr(paging, "make_cache", refused)
        with pytest.raises(KeyboardInterrupt):
            engine.resize(vram=400 * MIB)
        assert engine.plan == plan
        assert engine.generate("the hen", GREEDY).token_ids == wanted


def test_a_warm_start_is_not_cold(qwen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOE_LOCAL_HOME", str(tmp_path))
    options = Options(context=128, experts=0.5, prefetch="off", warm=True)
    with load(qwen, options) as engine:
        wanted = engine.generate(PROMPT, GREEDY).token_ids
        kept = engine.cache.residents()
        cold = engine.cache.counters.misses
    with load(qwen, options) as engine:
        assert engine.cache.residents() == kept
        assert engine.cache.counters.misses == engine.cache.counters.bytes_read == 0
        assert engine.generate(PROMPT, GREEDY).token_ids == wanted
        assert engine.cache.counters.misses < cold
    (remembered,) = (tmp_path / "warm").iterdir()
    for damaged in ("", "[[1]]", "[[99], [], [], []]", "[[0, 0], [], [], []]", "{}"):
        remembered.write_text(damaged)
        with load(qwen, options) as engine:
            assert not any(engine.cache.residents())
            assert engine.generate(PROMPT, GREEDY).token_ids == wanted


def test_a_second_interrupt_leaves_the_engine_whole(qwen: Path) -> None:
    """Ctrl-C that is not waited for, anywhere in a generation: the next answer is right."""
    with load(qwen, Options(context=128, experts=0.4), read_at=partial(SlowDisk, seconds=0.0005)) as engine:
        wanted = engine.generate(PROMPT, GREEDY).token_ids
        session = engine.chat(GREEDY)
        answer = session.send("Hello").text
        rng = random.Random(0)
        interrupted = 0
        for _ in range(30):
            with interrupted_after(rng.uniform(0.001, 0.04)) as struck:
                session.send("More")
            interrupted += len(struck)
            assert engine.generate(PROMPT, GREEDY).token_ids == wanted
            session.reset()
            assert session.send("Hello").text == answer
        assert interrupted > 10


def test_a_budget_beyond_the_machine_is_cut_and_said(qwen: Path) -> None:
    load_plan = plan_load(qwen, Options(ram=1 << 60))
    assert "more than this machine" in load_plan.notes[0]
    assert load_plan.plan.ram < 1 << 60


def test_planned_dense_bytes_are_the_loaded_ones(qwen: Path) -> None:
    with load(qwen) as engine:
        tensors = {id(t): t for t in [*engine.model.parameters(), *engine.model.buffers()]}
        assert sum(t.nbytes for t in tensors.values()) == engine.plan.needs.dense


def test_a_failing_disk_in_the_middle_of_a_generation(qwen: Path) -> None:
    """The error names the file; the engine goes on working when the disk does."""
    broken = threading.Event()
    with load(
        qwen,
        Options(experts=0.25),
        read_at=lambda reader: FailingDisk(reader, lambda number: broken.is_set()),
    ) as engine:
        wanted = engine.generate(PROMPT, GREEDY).token_ids
        broken.set()
        with pytest.raises(StorageError, match=r"reading .*safetensors failed"):
            engine.generate(PROMPT, GREEDY)
        broken.clear()
        assert engine.generate(PROMPT, GREEDY).token_ids == wanted


def test_a_file_cut_off_while_in_use(qwen: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(qwen, tmp_path / "model"))
    with load(copy, Options(experts=0.001)) as engine:
        for shard in copy.glob("model-*.safetensors"):
            with shard.open("r+b") as stream:
                stream.truncate(64)
        with pytest.raises(StorageError, match="has changed"):
            engine.generate(PROMPT, GREEDY)


def _with_tensors(source: Path, target: Path, change: object) -> Path:
    shutil.copytree(source, target)
    for shard in target.glob("*.safetensors"):
        tensors = load_file(shard)
        change(tensors)  # type: ignore[operator]
        save_file(tensors, shard, metadata={"format": "pt"})
    return target


def test_damaged_weights_that_give_nan_are_said(mixtral: Path, tmp_path: Path) -> None:
    def poison(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.norm.weight"] = tensors["model.norm.weight"] * float("nan")

    with (
        load(_with_tensors(mixtral, tmp_path / "nan", poison)) as engine,
        pytest.raises(CheckpointError, match="NaN"),
    ):
        engine.generate(PROMPT, GREEDY)


def test_a_missing_dense_tensor_is_named(mixtral: Path, tmp_path: Path) -> None:
    broken = _with_tensors(mixtral, tmp_path / "broken", lambda tensors: tensors.pop("model.norm.weight"))
    with pytest.raises(CheckpointError, match=r"lacks model\.norm\.weight"):
        load(broken)


def test_a_dense_tensor_of_a_wrong_shape_is_named(mixtral: Path, tmp_path: Path) -> None:
    def cut(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.norm.weight"] = tensors["model.norm.weight"][:-1].clone()

    with pytest.raises(CheckpointError, match=r"model\.norm\.weight of shape"):
        load(_with_tensors(mixtral, tmp_path / "broken", cut))


def test_a_tokenizer_is_only_needed_for_text(mixtral: Path, tmp_path: Path) -> None:
    bare = Path(shutil.copytree(mixtral, tmp_path / "bare"))
    for file in bare.glob("*token*"):
        file.unlink()
    with load(bare) as engine:
        assert engine.model(torch.tensor([[1, 2, 3]])).logits.isfinite().all()
        with pytest.raises(CheckpointError, match="tokenizer"):
            engine.generate(PROMPT, GREEDY)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (Options(device="tpu"), "--device tpu"),
        (Options(dtype="int3"), "--dtype int3"),
        (Options(context=0), "--context 0"),
        (Options(context=10**9), "positions"),
    ],
)
def test_options_that_make_no_sense(qwen: Path, options: Options, said: str) -> None:
    with pytest.raises(MoeLocalError, match=said):
        load(qwen, options)


@pytest.mark.parametrize(
    "wrong",
    [
        {"experts": 0.0},
        {"experts": 5.0},
        {"experts": math.nan},
        {"host_experts": -1.0},
        {"ram": -1},
        {"vram": -1},
    ],
)
def test_options_that_cannot_be(wrong: dict[str, float]) -> None:
    with pytest.raises(MoeLocalError):
        Options(**wrong)  # type: ignore[arg-type]


def test_tokens_outside_the_vocabulary(qwen: Path) -> None:
    with load(qwen, Options(context=128)) as engine:
        for ids in ([1, 10**6], [-1]):
            with pytest.raises(CheckpointError, match="tokenizer"):
                engine.generate(ids, GREEDY)


def test_a_system_message_needs_a_template(qwen: Path) -> None:
    with load(qwen, Options(context=128)) as engine, pytest.raises(MoeLocalError, match="system"):
        engine.encode("hello", raw=True, system="Be kind.")


def test_the_package_is_light_until_used() -> None:
    assert moe_local.__version__
    with pytest.raises(AttributeError):
        moe_local.nothing  # noqa: B018
