"""Other budgets while conversations go on."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from moe_local import Sampling, paging
from moe_local.engine import load
from moe_local.errors import BudgetError, MoeLocalError
from moe_local.planning.machines import DRIVER
from moe_local.planning.options import Options
from moe_local.planning.plan_load import plan_load
from moe_local.testing.pretend_cuda import can_pretend, pretend_cuda
from moe_local.units import GIB, MIB

PRETENDED = pytest.param("pretended", marks=pytest.mark.skipif(not can_pretend(), reason="torch has CUDA's kernels"))
GREEDY = Sampling(max_new_tokens=16, temperature=0)


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
