"""What a process really takes, against the budget that it was given; with a vocabulary like those of real models."""

from __future__ import annotations

import itertools
import json
import string
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3MoeConfig, Qwen3MoeForCausalLM

from moe_local import Sampling, load
from moe_local.errors import BudgetError
from moe_local.memory.pages import can_release
from moe_local.planning.options import Options
from moe_local.planning.plan_load import plan_load
from moe_local.units import MIB
from tests.generation.speaking import write_tokenizer
from tests.processes import python

WORDS = 120_000
GREEDY = Sampling(max_new_tokens=4, temperature=0)

LOADED = """
import json, sys
from moe_local import Options, load
from moe_local.memory.limits import process_memory
from moe_local.memory.pages import trim

with load(sys.argv[1], Options(device="cpu", context=512)) as engine:
    trim()
    print(json.dumps([process_memory(), engine.plan.ram_overhead + engine.plan.needs.dense]))
"""

FULL = """
import json, random, sys
from moe_local import Options, Sampling, load
from moe_local.memory.limits import peak_memory
from moe_local.planning.plan_load import plan_load

options = {"device": "cpu", "context": 1100}
plan = plan_load(sys.argv[1], Options(**options)).plan
needs = plan.needs.with_short_passes()
half = plan.ram_overhead + needs.resident_bytes + needs.all_experts * needs.slot // 2
with load(sys.argv[1], Options(ram=half, **options)) as engine:
    words = engine.model.config.vocab_size
    engine.generator.prefill_chunk = 512
    engine.generate([random.randrange(words) for _ in range(1024)], Sampling(max_new_tokens=8, temperature=0))
    kept, planned = sum(map(len, engine.cache.residents())), engine.plan.capacity(512)
    print(json.dumps([peak_memory(), half, kept, sum(planned.kept), needs.all_experts]))
"""


@pytest.fixture(scope="module")
def wordy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4 layers of 128 experts, 400 MB of them, and a tokenizer with words enough to weigh something."""
    folder = tmp_path_factory.mktemp("wordy")
    config = Qwen3MoeConfig(
        vocab_size=WORDS,
        hidden_size=256,
        intermediate_size=256,
        moe_intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        num_experts=128,
        num_experts_per_tok=8,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = Qwen3MoeForCausalLM(config).to(torch.bfloat16)
    model.model.embed_tokens.weight.data.mul_(64)  # or a random model sends all tokens to the same experts
    model.save_pretrained(folder)
    write_tokenizer(_tokenizer(), folder)
    return folder


def _tokenizer() -> PreTrainedTokenizerFast:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = ["".join(pair) for pair in itertools.product(string.ascii_lowercase, repeat=2)]
    fours = [first + second for first in pairs for second in pairs][: WORDS - len(letters) - len(pairs)]
    merges = [(pair[0], pair[1]) for pair in pairs] + [(four[:2], four[2:]) for four in fours]
    tokens = [*letters, *pairs, *fours]
    model = models.BPE(vocab={token: number for number, token in enumerate(tokens)}, merges=merges)
    found = Tokenizer(model)
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=found)


@pytest.mark.skipif(not can_release(), reason="needs an allocator that gives memory back when asked")
def test_what_is_loaded_is_in_the_plan(wordy: Path) -> None:
    taken, planned = json.loads(python(LOADED, wordy).stdout)
    assert planned - 64 * MIB < taken <= planned


@pytest.mark.skipif(not can_release(), reason="needs an allocator that gives memory back when asked")
def test_a_budget_holds_once_every_slot_is_filled(wordy: Path) -> None:
    peak, ram, kept, planned, experts = json.loads(python(FULL, wordy).stdout)
    assert 0.2 * experts < planned <= kept < experts
    assert peak <= ram


def test_what_loading_takes_beyond_the_plan_is_taken_from_experts(
    qwen: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moe_local.planning.plan_load.process_memory", lambda: 400 * MIB)
    whole = Options(device="cpu", context=128)
    plan = plan_load(qwen, whole).plan
    needs, before, after = plan.needs, plan.ram_overhead, plan.ram_overhead + 16 * MIB
    monkeypatch.setattr("moe_local.planning.tiers.process_memory", lambda: before + needs.dense)
    with load(qwen, whole) as engine:
        assert engine.plan.ram_overhead == before
        wanted = engine.generate("the hen", GREEDY).token_ids
    monkeypatch.setattr("moe_local.planning.tiers.process_memory", lambda: before + needs.dense + 1)
    least = after + needs.resident_bytes + needs.least_slots_bytes
    with load(qwen, replace(whole, ram=least + 3 * needs.slot)) as engine:
        assert engine.plan.ram_overhead == after and engine.plan.capacity(128).slots == 8
        assert plan_load(qwen, engine.load_plan.options).plan.capacity(128).slots == needs.all_experts
        assert engine.generate("the hen", GREEDY).token_ids == wanted
    with pytest.raises(BudgetError, match=f"--ram {-(-least >> 20) + 16}MiB"):
        load(qwen, replace(whole, ram=least - 1))
