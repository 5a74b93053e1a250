"""The engine as Python users meet it: budgets, exactness, failures."""

from __future__ import annotations

import gc
import random
import re
import weakref
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import moe_local
from moe_local import Sampling
from moe_local.engine import Engine, load
from moe_local.errors import BudgetError, MoeLocalError
from moe_local.planning.options import Options
from moe_local.planning.plan_load import plan_load
from moe_local.testing import SlowDisk, interrupted_after
from moe_local.units import MIB

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


def test_the_package_is_light_until_used() -> None:
    assert moe_local.__version__
    with pytest.raises(AttributeError):
        moe_local.nothing  # noqa: B018
