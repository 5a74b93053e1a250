"""When and how far to read ahead; and that nothing but time depends on it."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from moe_local import Sampling
from moe_local.engine import load
from moe_local.errors import MoeLocalError
from moe_local.experts.next_router import next_routers
from moe_local.experts.prefetch import Prefetcher
from moe_local.experts.trial import PrefetchDepth, PrefetchTrial
from moe_local.kernels import native
from moe_local.planning.options import Options
from moe_local.prediction import PREDICTORS
from moe_local.prediction.routers import NextRouter
from moe_local.telemetry import Counters
from moe_local.testing import FailingDisk, SlowDisk
from moe_local.testing.pretend_cuda import can_pretend, pretend_cuda

EXPERTS, TOP_K = [6, 6, 6], [2, 2, 2]


class _Clock:
    def __init__(self) -> None:
        self.now = self.stalled = 0.0
        self.misses = 0

    def __call__(self) -> float:
        return self.now


def _run(
    trial: PrefetchTrial,
    clock: _Clock,
    seconds: Callable[[bool], float],
    tokens: int,
    *,
    misses: bool = True,
    waits: float = 0.3,
) -> float:
    """The share of the last half of the tokens that were read ahead; without, `waits` of a token is a stall."""
    ahead = []
    for _ in range(tokens):
        trial.token(clock.misses, clock.stalled)
        ahead.append(trial.on)
        clock.misses += misses
        clock.stalled += 0.0 if trial.on else waits * seconds(False)
        clock.now += seconds(trial.on)
    return sum(ahead[tokens // 2 :]) / len(ahead[tokens // 2 :])


@pytest.mark.parametrize(
    ("with_", "waits", "low", "high"),
    [
        (0.8, 0.3, 0.9, 1),
        (1.2, 0.3, 0, 0.1),
        (1.0, 0.3, 0.9, 1),  # in doubt: there is much to gain
        (0.9, 0.1, 0.9, 1),
        (1.0, 0.1, 0, 0.1),  # and here is not
    ],
)
def test_a_trial_goes_with_what_is_faster(with_: float, waits: float, low: float, high: float) -> None:
    trial = PrefetchTrial(clock := _Clock())
    assert low <= _run(trial, clock, lambda on: with_ if on else 1.0, 2000, waits=waits) <= high


def test_a_trial_notices_a_change() -> None:
    trial = PrefetchTrial(clock := _Clock())
    _run(trial, clock, lambda on: 0.8 if on else 1.0, 1000)
    assert trial.on
    assert _run(trial, clock, lambda on: 1.2 if on else 1.0, 4000) < 0.1
    assert _run(trial, clock, lambda on: 0.8 if on else 1.0, 4000) > 0.9


def test_without_misses_there_is_no_trial() -> None:
    trial = PrefetchTrial(clock := _Clock())
    assert _run(trial, clock, lambda on: 1.0, 200, misses=False) == 0


def test_where_nothing_waits_there_is_no_trial() -> None:
    trial = PrefetchTrial(clock := _Clock())
    assert _run(trial, clock, lambda on: 0.5 if on else 1.0, 500, waits=0.01) == 0


def test_depth_ends_where_ranks_are_wrong() -> None:
    depth, rng = PrefetchDepth(4), random.Random(0)
    assert depth.ranks == 4
    for _ in range(2000):
        depth.learn([rng.random() < share for share in (0.95, 0.8, 0.3, 0.9)])
    assert depth.ranks == 2


def _known_router() -> NextRouter:
    """Layer 1 is asked what layer 0's hidden state says; layer 2 cannot be asked."""
    return NextRouter({0: (torch.eye(6), None)})


def test_the_likeliest_first_and_how_right_they_were() -> None:
    counters = Counters.of(3)
    prefetcher = Prefetcher(_known_router(), EXPERTS, TOP_K, counters)
    prefetcher._trial.on = True
    hidden = torch.tensor([[0.0, 3, 0, 9, 1, 0]])
    assert list(prefetcher.candidates(0, hidden, [0, 1])()) == [(1, 3), (1, 1)]
    assert list(prefetcher.candidates(1, hidden, [3, 5])()) == []
    assert (counters.predicted, counters.predicted_right, counters.foreseeable) == (2, 1, 2)


def test_many_tokens_need_as_many_of_the_next_layer() -> None:
    prefetcher = Prefetcher(_known_router(), EXPERTS, TOP_K, Counters.of(3))
    assert len(list(prefetcher.candidates(1, torch.zeros(5, 6), [0, 3, 4])())) == 3
    assert sorted(prefetcher.candidates(1, torch.zeros(5, 6), range(6))()) == [(2, expert) for expert in range(6)]
    assert list(prefetcher.candidates(2, torch.zeros(5, 6), [0])()) == []


@pytest.mark.parametrize("name", sorted(PREDICTORS))
def test_predictors_learn_what_repeats(name: str) -> None:
    """Layer l+1 always needs what layer l does, moved by one."""
    predictor = PREDICTORS.named(name)(NextRouter({}), EXPERTS)
    rng = random.Random(0)
    right = 0
    for token in range(200):
        chosen = [token // 20 % 6, rng.randrange(6)]
        for layer in range(3):
            scores = predictor.scores(layer, torch.zeros(1, 4), sorted(set(chosen)))
            chosen = [(expert + 1) % 6 for expert in chosen]
            if scores is not None and layer < 2:
                right += int(np.argmax(scores)) in chosen
    assert name == "router" or right > 250  # of 400; 130 by chance


def test_an_unknown_predictor_is_refused() -> None:
    with pytest.raises(MoeLocalError, match="choose one of off, router"):
        Options(prefetch="oracle")


def test_the_next_router_is_the_models_own(qwen: Path) -> None:
    """With the norms folded in: on a hidden state that does not change, its choice is the next layer's."""
    with load(qwen, Options(context=64, experts=0.5)) as engine, torch.no_grad():
        routers = next_routers(engine.model, engine.load_plan.catalog)
        first, second = engine.model.model.layers[:2]
        stream = torch.randn(1, engine.model.config.hidden_size)
        scores = routers.scores(0, first.post_attention_layernorm(stream), [])
        logits = second.mlp.gate.weight @ second.post_attention_layernorm(stream)[0]
        torch.testing.assert_close(torch.from_numpy(scores), logits.float(), atol=0.02, rtol=0.02)


def _always_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PrefetchTrial, "token", lambda self, *so_far: setattr(self, "on", True))


@pytest.mark.parametrize("prefetch", sorted(PREDICTORS))
def test_the_tokens_are_the_same(qwen: Path, prefetch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _always_on(monkeypatch)
    prompt, greedy = "The quick brown fox " * 3, Sampling(max_new_tokens=16, temperature=0)
    with load(qwen, Options(context=128, prefetch="off")) as engine:
        wanted = engine.generate(prompt, greedy).token_ids
    for options in (
        Options(context=128, experts=0.4, prefetch=prefetch),
        Options(context=128, experts=0.25, host_experts=0.5, vram=400 << 20, prefetch=prefetch),
    ):
        with load(qwen, options, read_at=partial(SlowDisk, seconds=0.002)) as engine:
            result = engine.generate(prompt, greedy)
        assert result.token_ids == wanted
        counters = engine.cache.counters
        assert counters.prefetched > 0
        assert counters.uploaded_ahead == 0  # a copy in RAM goes on beside nothing
        assert (
            counters.bytes_wasted + counters.prefetch_hits * engine.plan.needs.slot >= counters.bytes_prefetched // 2
        )


@pytest.mark.skipif(not can_pretend(), reason="torch has CUDA kernels of its own")
@pytest.mark.parametrize("in_ram", [0.5, 1.0])
@pytest.mark.parametrize("misses", ["upload", "cpu"])
def test_what_is_foreseen_is_uploaded_unless_a_cpu_multiplies_by_it(
    qwen: Path, in_ram: float, misses: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _always_on(monkeypatch)
    prompt, greedy = "The quick brown fox " * 3, Sampling(max_new_tokens=16, temperature=0)
    with load(qwen, Options(context=128, dtype="float32")) as engine:
        wanted = engine.generate(prompt, greedy).token_ids
    part = Options(device="cuda", context=128, dtype="float32", experts=0.4, host_experts=in_ram, misses=misses)
    with pretend_cuda(memory=4 << 30), load(qwen, part) as engine:
        assert engine.generate(prompt, greedy).token_ids == wanted
        counters = engine.cache.counters
    assert (counters.uploaded_ahead_hits > 0) == (misses == "upload" or native.missing() is not None)
    assert counters.uploaded_ahead_hits <= counters.uploaded_ahead


def test_a_prefetch_that_fails_is_read_again(qwen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _always_on(monkeypatch)
    chaos = random.Random(0)
    prompt, greedy = "The quick brown fox", Sampling(max_new_tokens=12, temperature=0)
    with load(qwen, Options(context=128)) as engine:
        wanted = engine.generate(prompt, greedy).token_ids
    failures, loaded = 0, False
    with load(
        qwen,
        Options(context=128, experts=0.4),
        read_at=lambda files: FailingDisk(
            SlowDisk(files, seconds=0.001), lambda _: loaded and chaos.random() < 0.002
        ),
    ) as engine:
        loaded = True
        for _ in range(20):
            try:
                assert engine.generate(prompt, greedy).token_ids == wanted
            except MoeLocalError as error:
                assert "failed at byte" in str(error)
                failures += 1
    assert 0 < failures < 20
