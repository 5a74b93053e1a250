"""How often the host waits for a device, and how much it launches: what a token takes, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from moe_local.engine import Engine, load
from moe_local.experts.mirror import LEARNS_EACH
from moe_local.generation.batch import Request
from moe_local.generation.sampling import Sampling
from moe_local.model.transformers_api import CACHE, kv_cache
from moe_local.planning.options import Options
from moe_local.testing.pretend_cuda import PretendCuda, Tally, can_pretend, pretend_cuda
from moe_local.testing.pretend_triton import pretend_triton

pytestmark = pytest.mark.skipif(not can_pretend(), reason="torch has CUDA kernels of its own")


@pytest.fixture
def gpu() -> Iterator[PretendCuda]:
    with pretend_cuda() as device:
        yield device


def _token(gpu: PretendCuda, engine: Engine) -> Tally:
    """A token's forward pass after some others."""
    token = torch.tensor([[8]], device="cuda")
    with torch.inference_mode():
        out = engine.model(torch.tensor([[5, 6, 7]], device="cuda"))
        out = engine.model(token, **{CACHE: kv_cache(out)})
        with gpu.watch() as seen:
            engine.model(token, **{CACHE: kv_cache(out)})
    return seen


def _warm(engine: Engine) -> None:
    for layer, experts in enumerate(engine.cache.experts):
        engine.cache.warm(layer, range(experts))


def test_a_layer_waits_once_for_its_router(gpu: PretendCuda, qwen: Path) -> None:
    with load(qwen, Options(device="cuda", context=128)) as engine:
        _warm(engine)
        seen = _token(gpu, engine)
        layers = engine.model.config.num_hidden_layers
    assert [line.partition(":")[0] for line, _ in seen.by_sync] == ["experts/routing.py"], seen.told()
    assert seen.syncs == layers


def test_what_a_layer_launches(gpu: PretendCuda, qwen: Path) -> None:
    with load(qwen, Options(device="cuda", context=128)) as engine:
        _warm(engine)
        seen = _token(gpu, engine)
        config = engine.model.config
    # Four norms are 24 of them, rotary embeddings 10; an expert that is not decoded 2, and all together 6.
    each = 53 + 2 * config.num_experts_per_tok
    assert seen.launches <= config.num_hidden_layers * each + 15, seen.told()


def test_misses_are_not_waited_for_on_the_host(gpu: PretendCuda, qwen: Path) -> None:
    """Beside the router's choice, what is read from the disk and uploaded costs no sync of the device."""
    with load(qwen, Options(device="cuda", context=128, experts=0.25, host_experts=0.5, prefetch="off")) as engine:
        before = engine.stats()["bytes_uploaded"]
        seen = _token(gpu, engine)
        assert engine.stats()["bytes_uploaded"] > before
        layers = engine.model.config.num_hidden_layers
    assert seen.syncs == layers, seen.told()


def test_a_token_is_written_behind_the_others(gpu: PretendCuda, qwen: Path) -> None:
    """One launch for its keys and one for its values, whose bytes are all that is written."""
    with load(qwen, Options(device="cuda", context=128)) as engine:
        seen = _token(gpu, engine)
        layers = engine.model.config.num_hidden_layers
    written = {name: count for (line, name), count in seen.by_launch.items() if line.startswith("model/kv_cache")}
    assert written == {"copy_": 2 * layers}, seen.told()
    assert not any(line.startswith("transformers/cache_utils") for line, _ in seen.by_launch), seen.told()


OWN_SYNCS = 3  # of transformers and of a stream of text, a token
GREEDY = Sampling(max_new_tokens=6, temperature=0)
RESIDENT = Options(device="cuda", context=128, dtype="float32")


def test_experts_that_are_all_there_are_run_without_the_host(gpu: PretendCuda, qwen: Path) -> None:
    with pretend_triton(), load(qwen, RESIDENT) as engine:
        _warm(engine)
        seen = _token(gpu, engine)
        layers = engine.model.config.num_hidden_layers
    assert seen.syncs == 0, seen.told()
    ours = {at: count for at, count in seen.by_launch.items() if at[0].startswith("experts/")}
    assert ours, seen.told()
    assert sum(ours.values()) <= 5 * layers, seen.told()


def test_a_token_waits_for_what_transformers_waits_for(gpu: PretendCuda, qwen: Path) -> None:
    """Beside that, at most once a token."""
    with load(qwen, Options(device="cpu", context=128, dtype="float32")) as engine:
        wanted = engine.generate([5, 6, 7], GREEDY)
    syncs = []
    with pretend_triton(), load(qwen, RESIDENT) as engine:
        _warm(engine)
        for tokens in (3, 6):
            with gpu.watch() as seen:
                found = engine.generate([5, 6, 7], Sampling(max_new_tokens=tokens, temperature=0))
            syncs.append(seen.syncs)
    assert syncs[1] - syncs[0] <= (OWN_SYNCS + 1) * 3, seen.told()
    assert found.token_ids == wanted.token_ids
    assert (found.counters.lookups, found.counters.misses) == (wanted.counters.lookups, 0)
    assert found.counters.forwards == wanted.counters.forwards


def test_what_is_not_there_yet_is_fetched_and_then_run_without_the_host(gpu: PretendCuda, qwen: Path) -> None:
    prompt = [5, 6, 7]
    with load(qwen, Options(device="cpu", context=128, dtype="float32")) as engine:
        wanted = [engine.generate(prompt, GREEDY), engine.generate(prompt, GREEDY)]
    with pretend_triton(), load(qwen, RESIDENT) as engine:
        found = [engine.generate(prompt, GREEDY)]
        _warm(engine)
        found.append(engine.generate(prompt, GREEDY))
    assert [each.token_ids for each in found] == [each.token_ids for each in wanted]
    assert found[0].counters.misses == wanted[0].counters.misses
    assert [each.counters.lookups for each in found] == [each.counters.lookups for each in wanted]


def test_who_looks_at_the_routing_sees_it_beside_the_table(gpu: PretendCuda, qwen: Path) -> None:
    looked: list[tuple[int, int]] = []

    def tap(layer: int, index: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        looked.append((layer, len(index)))
        return index, weights

    with pretend_triton(), load(qwen, RESIDENT) as engine:
        _warm(engine)
        engine.tap(tap)
        seen = _token(gpu, engine)
        layers = engine.model.config.num_hidden_layers
    assert looked == [(layer, tokens) for tokens in (3, 1, 1) for layer in range(layers)]
    assert seen.syncs == 0, seen.told()


def test_a_batch_over_the_table_says_what_one_after_the_other_does(gpu: PretendCuda, qwen: Path) -> None:
    """With the padding of its prompts taken out, in what is multiplied and in what is counted."""
    prompts = ([11, 12, 13], [21, 22, 23, 24, 25], [31])
    options = Options(device="cuda", context=128, dtype="float32", max_sequences=3)
    found = []
    for triton in (nullcontext(), pretend_triton()):
        with triton, load(qwen, options) as engine:
            _warm(engine)
            before = engine.stats()["hits"]
            answers = engine.batch([Request(prompt, GREEDY, tag=tag) for tag, prompt in enumerate(prompts)])
            said = sorted((answer.request.tag, tuple(answer.token_ids), answer.error) for answer in answers)
            found.append((said, engine.stats()["hits"] - before))
    assert found[0] == found[1]


ZERO_COPIED = Options(device="cuda", context=128, dtype="float32", experts=0.5, misses="zero-copy")
LONGER = Sampling(max_new_tokens=40, temperature=0)


def test_experts_are_read_in_ram_without_the_host(gpu: PretendCuda, qwen: Path) -> None:
    """But for one token of each layer in so many, which are not the same for all layers."""
    token = torch.tensor([[8]], device="cuda")
    with pretend_triton(), load(qwen, ZERO_COPIED) as engine, torch.inference_mode():
        assert not any("RAM" in note for note in engine.notes)
        out = engine.model(torch.tensor([[5, 6, 7]], device="cuda"))
        seen = []
        for _ in range(LEARNS_EACH):
            with gpu.watch() as tally:
                engine.model(token, **{CACHE: kv_cache(out)})
            seen.append(tally.syncs)
        layers = engine.model.config.num_hidden_layers
    assert sum(seen) == layers > 1, tally.told()
    assert max(seen) == 1


def test_what_is_read_in_ram_is_what_is_uploaded_elsewhere(gpu: PretendCuda, qwen: Path) -> None:
    with load(qwen, Options(device="cpu", context=128, dtype="float32")) as engine:
        wanted = engine.generate([5, 6, 7], LONGER)
    with pretend_triton(), load(qwen, ZERO_COPIED) as engine:
        before = engine.cache.residents()
        found = engine.generate([5, 6, 7], LONGER)
        stats = engine.stats()
        assert engine.cache.residents() != before  # it learns
        slot = engine.plan.needs.slot
    assert found.token_ids == wanted.token_ids
    assert found.counters.lookups == wanted.counters.lookups
    assert found.counters.forwards == wanted.counters.forwards
    assert stats["misses"] > stats["zero_copied"] > 0 == stats["bytes_read"]
    assert stats["host_hits"] == stats["misses"]
    assert stats["bytes_uploaded"] == (stats["misses"] - stats["zero_copied"]) * slot


def test_other_budgets_go_on_reading_in_ram(gpu: PretendCuda, qwen: Path) -> None:
    with load(qwen, Options(device="cpu", context=128, dtype="float32")) as engine:
        wanted = engine.generate([5, 6, 7], LONGER).token_ids
    with pretend_triton(), load(qwen, ZERO_COPIED) as engine:
        for ram in (None, engine.plan.ram - (1 << 20)):
            engine.resize(vram=None if ram else engine.plan.vram, ram=ram)
            before = engine.stats()["zero_copied"]
            assert engine.generate([5, 6, 7], LONGER).token_ids == wanted
            assert engine.stats()["zero_copied"] > before


@pytest.mark.parametrize(
    ("triton", "options", "said"),
    [
        (nullcontext, {}, "cannot be read in RAM"),
        (pretend_triton, {"host_experts": 0.75}, "room for all experts of 4 of 4 layers"),
    ],
)
def test_what_cannot_be_read_in_ram_is_uploaded_and_that_is_said(
    gpu: PretendCuda, qwen: Path, triton: Callable[[], AbstractContextManager[None]], options: Any, said: str
) -> None:
    with triton(), load(qwen, replace(ZERO_COPIED, **options)) as engine:
        found = engine.generate([5, 6, 7], GREEDY)
        stats = engine.stats()
        assert any(said in note for note in engine.notes), engine.notes
    assert stats["zero_copied"] == 0 < stats["bytes_uploaded"]
    with load(qwen, Options(device="cpu", context=128, dtype="float32")) as engine:
        assert found.token_ids == engine.generate([5, 6, 7], GREEDY).token_ids


@pytest.mark.parametrize("pinnable", [0, 1 << 16])
def test_ram_that_is_not_page_locked_is_not_read(qwen: Path, pinnable: int) -> None:
    with pretend_cuda(pinnable=pinnable), pretend_triton(), load(qwen, ZERO_COPIED) as engine:
        engine.generate([5, 6, 7], GREEDY)
        assert engine.stats()["zero_copied"] == 0
        assert any("cannot be read in RAM" in note for note in engine.notes)


def test_layers_that_are_not_there_whole_go_by_the_host(gpu: PretendCuda, qwen: Path) -> None:
    tiers = Options(device="cuda", context=128, dtype="float32", experts=0.5, host_experts=0.75)
    with pretend_triton(), load(qwen, tiers) as engine:
        found = engine.generate([5, 6, 7], GREEDY)
    with load(qwen, Options(device="cpu", context=128, dtype="float32")) as engine:
        assert found.token_ids == engine.generate([5, 6, 7], GREEDY).token_ids
