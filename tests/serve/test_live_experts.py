"""What is shown of the experts is what happens, it changes nothing, and costs nothing while nobody looks."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from moe_local.engine import Engine, load
from moe_local.experts.routing import PaddingMask, in_turn
from moe_local.generation.sampling import Sampling
from moe_local.planning.options import Options
from moe_local.serve.live import IN_RAM, ON_DEVICE, ON_DISK, LiveExperts
from moe_local.testing.pretend_cuda import can_pretend, pretend_cuda
from moe_local.units import GIB

GREEDY = Sampling(max_new_tokens=12, temperature=0)
PROMPT = [5, 17, 99, 42, 7]
PASSED = len(PROMPT) + GREEDY.max_new_tokens - 1  # tokens that went through the layers: the last one does not


class Recorder:
    """A routing hook that keeps all it sees."""

    def __init__(self, layers: int) -> None:
        self.seen: list[list[list[int]]] = [[] for _ in range(layers)]  # of each layer a row for each token

    def __call__(self, layer: int, index: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.seen[layer] += index.tolist()
        return index, weights


@pytest.fixture
def engine(qwen: Path) -> Iterator[Engine]:
    with load(qwen, Options(device="cpu", context=256, experts=0.5)) as engine:
        engine.model.generation_config.eos_token_id = None
        yield engine


def test_a_frame_tells_what_the_routers_chose_and_where_experts_are(engine: Engine) -> None:
    live, recorder = LiveExperts(engine), Recorder(len(engine.cache.experts))
    engine.tap(in_turn(recorder, live))
    with live.watch() as frame:
        engine.generate(PROMPT, GREEDY)
        shown = json.loads(json.dumps(frame()))
    for layer, rows in enumerate(recorder.seen):
        assert len(rows) == PASSED
        counted = {
            expert: sum(row.count(expert) for row in rows) for expert in sorted({e for row in rows for e in row})
        }
        assert dict(shown["used"][layer]) == counted
        assert sorted(shown["chosen"][layer]) == sorted(rows[-1])
        residents = engine.cache.residents()[layer]
        assert [expert for expert, tier in enumerate(shown["tiers"][layer]) if tier == IN_RAM] == residents
    assert set("".join(shown["tiers"])) == {IN_RAM, ON_DISK}
    counters = engine.cache.counters
    totals = {"hits": counters.hits, "misses": counters.misses, "bytes_read": counters.bytes_read, "tokens": PASSED}
    assert totals.items() <= shown["counters"].items()
    assert shown["memory"]["ram"] > 0 and shown["memory"]["ram_budget"] == engine.plan.ram
    assert shown["memory"]["vram"] is shown["memory"]["vram_budget"] is None


def test_nothing_is_counted_while_nobody_watches(engine: Engine) -> None:
    live = LiveExperts(engine)
    engine.tap(live)
    engine.generate(PROMPT, GREEDY)
    assert not live.watching
    with live.watch() as frame:
        assert live.watching
        shown = frame()
    assert shown["used"] == shown["chosen"] == [[]] * shown["layers"]
    assert shown["counters"]["tokens"] == 0 < shown["counters"]["misses"]
    index, weights = torch.tensor([[0, 1]]), torch.tensor([[0.5, 0.5]])
    given = live(0, index, weights)
    assert given[0] is index and given[1] is weights


def test_each_that_watches_is_told_everything_once(engine: Engine) -> None:
    live = LiveExperts(engine)
    engine.tap(live)

    def told(frame: dict[str, list[list[list[int]]]]) -> int:
        return sum(tokens for _, tokens in frame["used"][0])

    choices = PASSED * engine.plan.needs.top_k[0]
    with live.watch() as early:
        engine.generate(PROMPT, GREEDY)
        with live.watch() as late:
            assert told(early()) == choices
            engine.generate(PROMPT, GREEDY)
            assert [told(early()), told(late())] == [choices, choices]
            assert [told(early()), told(late())] == [0, 0]
    assert not live.watching


def test_padding_is_nobody(engine: Engine) -> None:
    live, padding = LiveExperts(engine), PaddingMask(engine.cache.experts)
    hook = in_turn(padding, live)
    padding.hide(torch.tensor([True, True, False]))
    with live.watch() as frame:
        hook(0, torch.tensor([[1, 2], [3, 1], [5, 6]]), torch.ones(3, 2))
        shown = frame()
        assert shown["used"][0] == [[1, 2], [2, 1], [3, 1]]
        assert shown["chosen"][0] == [3, 1]
        assert shown["counters"]["tokens"] == 2
        padding.hide(torch.tensor([False]))
        hook(0, torch.tensor([[1, 2]]), torch.ones(1, 2))
        shown = frame()
        assert shown["used"][0] == shown["chosen"][0] == []


def test_frames_can_be_made_while_another_thread_generates(engine: Engine) -> None:
    alone = engine.generate(PROMPT, GREEDY).token_ids
    live, over, wrong = LiveExperts(engine), threading.Event(), []
    engine.tap(live)
    told = 0

    def watch() -> None:
        nonlocal told
        try:
            with live.watch() as frame:
                watched.set()
                while not over.is_set():
                    told += sum(tokens for _, tokens in frame()["used"][0])
                told += sum(tokens for _, tokens in frame()["used"][0])
        except Exception as error:
            wrong.append(error)

    watched = threading.Event()
    thread = threading.Thread(target=watch)
    thread.start()
    assert watched.wait(10)
    for _ in range(5):
        assert engine.generate(PROMPT, GREEDY).token_ids == alone
    over.set()
    thread.join()
    assert wrong == []
    assert told == 5 * PASSED * engine.plan.needs.top_k[0]


PRETENDED = pytest.param("pretended", marks=pytest.mark.skipif(not can_pretend(), reason="torch has CUDA's kernels"))


@pytest.mark.parametrize("device", [PRETENDED, pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_device_has_a_tier_and_memory_of_its_own(device: str, qwen: Path) -> None:
    options = Options(device="cuda", context=256, experts=0.25, host_experts=0.5, vram=2 * GIB)
    with pretend_cuda() if device == "pretended" else nullcontext(), load(qwen, options) as engine:
        live = LiveExperts(engine)
        engine.tap(live)
        with live.watch() as frame:
            engine.generate(PROMPT, GREEDY)
            before = frame()
            engine.resize(vram=GIB)
            engine.tap(live)
            engine.generate(PROMPT, GREEDY)
            after = frame()
        assert set("".join(before["tiers"])) == {ON_DEVICE, IN_RAM, ON_DISK}
        assert sum(tiers.count(ON_DEVICE) for tiers in before["tiers"]) == engine.plan.device_experts
        assert before["counters"]["tokens"] == PASSED and after["counters"]["tokens"] == 2 * PASSED
        assert (before["memory"]["vram_budget"], after["memory"]["vram_budget"]) == (2 * GIB, GIB)
        assert 0 < after["memory"]["vram"] <= GIB


@pytest.mark.skipif(not can_pretend(), reason="torch has CUDA's kernels")
def test_a_device_is_not_waited_for_while_nobody_watches(qwen: Path) -> None:
    with pretend_cuda() as gpu, load(qwen, Options(device="cuda", context=256)) as engine:
        live, syncs = LiveExperts(engine), []
        for hook in (None, live):
            engine.tap(hook)
            engine.generate(PROMPT, GREEDY)
            with gpu.watch() as seen:
                engine.generate(PROMPT, GREEDY)
            syncs.append(seen.syncs)
        assert syncs[0] == syncs[1]
