"""Plans for a device whose memory is a part of RAM, and what runs by them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from moe_local import Options, Sampling, load
from moe_local.errors import BudgetError
from moe_local.memory import accelerator
from moe_local.planning.placement import spare_slots
from moe_local.planning.plan_load import plan_load
from moe_local.testing import architecture, write_tiny_checkpoint
from moe_local.testing.pretend_mps import can_pretend, pretend_mps
from moe_local.testing.quantised import is_linear, rewrite_checkpoint
from moe_local.units import GIB, MIB

pytestmark = pytest.mark.skipif(not can_pretend(), reason="torch has devices of its own")
GREEDY = Sampling(max_new_tokens=4, temperature=0)


def test_the_device_has_all_of_ram_that_is_not_on_the_way_to_it(mixtral: Path) -> None:
    with pretend_mps(memory=8 * GIB):
        whole = plan_load(mixtral, Options(device="mps", context=128)).plan
        assert (whole.vram, whole.share) == (8 * GIB, 1.0)
        needs = whole.needs
        through = needs.least_slots_bytes + spare_slots(needs) * needs.slot
        slots = needs.all_experts // 4 + spare_slots(needs)
        ram = whole.ram_overhead + needs.resident_bytes + through + slots * needs.slot
        part = plan_load(mixtral, Options(device="mps", context=128, ram=ram)).plan
        assert part.vram == ram - part.ram_overhead - through
        assert part.ram_used <= ram and part.device_in_ram
        assert 0.25 <= part.share < 0.3  # embeddings that are left on the disk make room for one


def test_what_the_device_may_not_take_ram_keeps(mixtral: Path) -> None:
    needs = plan_load(mixtral, Options(device="cpu", context=128)).plan.needs
    with pretend_mps(memory=needs.resident_bytes + (needs.all_experts // 4 + spare_slots(needs)) * needs.slot):
        plan = plan_load(mixtral, Options(device="mps", context=128, vram=GIB))
    assert "VRAM budget of 1 GiB is more than is recommended" in plan.notes[0]
    assert 0.25 <= plan.plan.share < 0.3
    assert plan.plan.host_slots == plan.plan.needs.experts


def test_a_budget_that_is_too_small_names_those_that_run(qwen: Path) -> None:
    with pretend_mps():
        load(qwen, Options(device="mps", context=128)).close()  # what the process takes does not grow any more
        with pytest.raises(BudgetError) as refused:
            plan_load(qwen, Options(device="mps", context=128, ram=8 * MIB))
        words = str(refused.value).split()
        vram, ram = (int(words[words.index(option) + 1].strip(",")[:-3]) for option in ("--vram", "--ram"))
        options = Options(device="mps", context=128, vram=vram * MIB, ram=ram * MIB)
        with load(qwen, options) as engine:
            assert engine.generate("the hen", GREEDY).new_tokens == 4


def test_a_slab_is_of_several_buffers_where_none_is_so_large(qwen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with load(qwen, Options(device="cpu", context=128, dtype="float32")) as engine:
        wanted, slot = engine.generate("the hen", GREEDY).token_ids, engine.plan.needs.slot
    monkeypatch.setattr(accelerator, "_LEAST_LARGEST", 3 * slot)
    options = Options(device="mps", context=128, dtype="float32", experts=0.6)
    with pretend_mps(), load(qwen, options) as engine:
        slab = engine.cache.slab
        assert {buffer.nbytes for buffer in slab._buffers[:-1]} == {3 * slot} and len(slab._buffers) > 2
        assert slab.nbytes == len(slab) * slot
        assert engine.generate("the hen", GREEDY).token_ids == wanted
        engine.resize(vram=engine.plan.vram_overhead + engine.plan.needs.resident_bytes + 8 * slot)
        assert len(engine.cache.slab) == 8
        assert engine.generate("the hen", GREEDY).token_ids == wanted


def test_experts_of_8_bit_floats(tmp_path: Path) -> None:
    def quantise(name: str, weight: Tensor) -> Mapping[str, Tensor]:
        if not is_linear(name, weight):
            return {name: weight}
        scale = weight.abs().max() / 448
        return {name: (weight / scale).to(torch.float8_e4m3fn), f"{name}_scale_inv": scale}

    plain = write_tiny_checkpoint(architecture("mixtral"), tmp_path / "plain")
    fp8 = rewrite_checkpoint(plain, tmp_path / "fp8", quantise, {"quant_method": "fp8"})
    with load(fp8, Options(device="cpu", context=128, dtype="float32")) as engine:
        wanted = engine.model(torch.tensor([[5, 6, 7]])).logits
    with pretend_mps(), load(fp8, Options(device="mps", context=128, dtype="float32", experts=0.5)) as engine:
        found = engine.model(torch.tensor([[5, 6, 7]], device="mps")).logits.cpu()
    torch.testing.assert_close(found, wanted)
