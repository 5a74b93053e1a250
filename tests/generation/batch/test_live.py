"""Requests that come one by one: each answer is the one it has alone, whoever else is there, whatever is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from moe_local.engine import Engine, load
from moe_local.errors import StorageError
from moe_local.generation.batch import LiveBatch, Request
from moe_local.generation.batch.sharing import TimeShares
from moe_local.generation.batch.steering import Steering
from moe_local.generation.sampling import Sampling
from moe_local.planning.options import Options
from tests.generation.batch.followers import Memory, ask, finish

SYSTEM = [7 + i * 13 % 200 for i in range(90)]
PROMPTS = [[5 + (i * 31 + n * 7) % 200 for i in range(2 + n * 5 % 23)] for n in range(12)]


def _greedy(count: int) -> Sampling:
    return Sampling(max_new_tokens=count, temperature=0)


def _engine(path: Path, **options: int) -> Engine:
    chosen = {"context": 256, "max_sequences": 4, "tokens_per_sequence": 128, **options}
    engine = load(path, Options(device="cpu", experts=0.5, **chosen))  # type: ignore[arg-type]
    engine.model.generation_config.eos_token_id = None
    return engine


def _asked(engine: Engine, batch: LiveBatch, prompt: list[int], count: int = 6, **more: Any) -> Memory:
    return ask(engine, batch, Request(prompt, _greedy(count), **more), prompt)


def _alone(engine: Engine, prompt: list[int], count: int = 6) -> list[int]:
    return engine.generate(prompt, _greedy(count)).token_ids


def test_answers_are_those_of_each_alone_whenever_they_came(qwen: Path) -> None:
    with _engine(qwen) as engine:
        alone = [_alone(engine, prompt, 3 + n % 5 * 4) for n, prompt in enumerate(PROMPTS)]
        batch = engine.live_batch()
        told = []
        for number, prompt in enumerate(PROMPTS):
            told.append(_asked(engine, batch, prompt, 3 + number % 5 * 4))
            batch.step()
        finish(batch)
        assert [memory.ids for memory in told] == alone
        assert batch.totals.passes < sum(map(len, alone)) / 2
        for memory in told:
            assert memory.answer is not None and memory.text == memory.answer.text


def test_a_beginning_that_was_computed_is_not_computed_again(qwen: Path) -> None:
    with _engine(qwen, tokens_per_sequence=256) as engine:
        first, other = SYSTEM + PROMPTS[1], SYSTEM + PROMPTS[2]
        alone = [_alone(engine, prompt) for prompt in (first, other)]
        batch = engine.live_batch()
        one = _asked(engine, batch, first)
        finish(batch)
        two = _asked(engine, batch, other)
        finish(batch)
        following = first + one.ids + PROMPTS[3]
        three = _asked(engine, batch, following)
        finish(batch)
        assert [one.ids, two.ids] == alone
        assert (one.cached, two.cached) == (0, len(SYSTEM))
        assert three.cached == len(first) + len(one.ids) - 1
        assert three.ids == _alone(engine, following)


def test_what_another_that_runs_has_computed_serves_as_well(qwen: Path) -> None:
    with _engine(qwen, tokens_per_sequence=256) as engine:
        prompts = [SYSTEM + PROMPTS[n] for n in range(4)]
        alone = [_alone(engine, prompt, 9) for prompt in prompts]
        batch = engine.live_batch()
        told = [_asked(engine, batch, prompt, 9) for prompt in prompts]  # at once: the first reads for all
        finish(batch)
        assert [memory.ids for memory in told] == alone
        assert [memory.cached for memory in told] == [0, *[len(SYSTEM)] * 3]


def test_a_long_prompt_goes_in_slices_and_others_go_on_meanwhile(qwen: Path) -> None:
    with _engine(qwen, context=512, tokens_per_sequence=512) as engine:
        engine.generator.prefill_chunk = 64
        long = [3 + i * i % 211 for i in range(440)]
        alone = _alone(engine, long)
        batch = engine.live_batch()
        short = _asked(engine, batch, PROMPTS[4], 40)
        batch.step()
        late = _asked(engine, batch, long)
        steps = 0
        while late.answer is None and not late.text:
            batch.step()
            steps += 1
        assert steps >= 440 // 64  # a token of the other's in each
        finish(batch)
        assert late.ids == alone and short.ids == _alone(engine, PROMPTS[4], 40)


def test_a_short_prompt_does_not_wait_for_a_long_one(qwen: Path) -> None:
    with _engine(qwen, context=512, tokens_per_sequence=512) as engine:
        engine.generator.prefill_chunk = 64
        batch = engine.live_batch()
        long = _asked(engine, batch, [3 + i * i % 211 for i in range(440)], 1)
        short = _asked(engine, batch, PROMPTS[4], 1)
        for _ in range(3):
            batch.step()
        assert short.answer is not None and long.answer is None
        finish(batch)
        assert long.answer is not None


def test_one_makes_room_where_all_grow_and_is_told_once(qwen: Path) -> None:
    with _engine(qwen, max_sequences=3, tokens_per_sequence=10, context=384) as engine:
        prompts = [prompt[:4] for prompt in PROMPTS[2:5]]
        batch = engine.live_batch()
        told = [_asked(engine, batch, prompt, 130) for prompt in prompts]
        finish(batch)
        assert batch.totals.put_back > 0
        for memory, prompt in zip(told, prompts, strict=True):
            assert memory.ids == _alone(engine, prompt, 130)
            assert memory.answer is not None and memory.text == memory.answer.text


def test_who_goes_gives_its_place_at_once(qwen: Path) -> None:
    with _engine(qwen, max_sequences=2, tokens_per_sequence=256) as engine:
        batch = engine.live_batch()
        told = [_asked(engine, batch, prompt, 50) for prompt in PROMPTS[:3]]
        batch.step()
        assert batch.active == 2 and len(batch.turns.waiting) == 1
        told[0].gone = True
        batch.step()
        assert told[0].answer is not None and told[0].answer.error is not None
        assert batch.active == 2 and not batch.turns.waiting
        finish(batch)
        assert [memory.ids for memory in told[1:]] == [_alone(engine, prompt, 50) for prompt in PROMPTS[1:3]]


@settings(max_examples=25, deadline=None, phases=[Phase.generate])  # shrinking takes minutes
@given(st.data())
def test_columns_never_exceed_the_budget(qwen_engine: Engine, data: st.DataObject) -> None:
    """Whatever comes and goes: what runs, what is read and what is kept have the budget's columns together."""
    engine = qwen_engine
    batch = engine.live_batch()
    told: list[tuple[Memory, list[int], int]] = []
    for _ in range(data.draw(st.integers(1, 12))):
        begin = SYSTEM[: data.draw(st.sampled_from([0, 40, 90]))]
        prompt = begin + PROMPTS[data.draw(st.integers(0, 11))]
        count = data.draw(st.integers(1, 30))
        told.append((_asked(engine, batch, prompt, count), prompt, count))
        for _ in range(data.draw(st.integers(0, 8))):
            batch.step()
            _assert_within(engine, batch)
        if data.draw(st.integers(0, 4)) == 0:
            data.draw(st.sampled_from(told))[0].gone = True
    while batch.step():
        _assert_within(engine, batch)
    for memory, prompt, count in told:
        if not memory.gone:
            assert memory.ids == _alone(engine, prompt, count)


def _assert_within(engine: Engine, batch: LiveBatch) -> None:
    most = engine.load_plan.kv_tokens
    rows = len(batch._rows) * batch._rows.length
    reading = sum(sequence.row.length for sequence in batch.turns.reading if sequence.row is not None)
    assert rows + reading + batch.kept.columns <= most
    assert batch.active <= engine.load_plan.sequences


@pytest.fixture(scope="module")
def qwen_engine(qwen: Path) -> Any:
    with _engine(qwen, max_sequences=3, tokens_per_sequence=160) as engine:
        yield engine


def test_another_budget_between_two_tokens_changes_no_answer(qwen: Path) -> None:
    with _engine(qwen) as engine:
        alone = [_alone(engine, prompt, 20) for prompt in PROMPTS[:3]]
        seen: list[int] = []

        def see(layer: int, index: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            seen.append(int((index < engine.cache.experts[layer]).sum()))
            return index, weights

        batch = engine.live_batch(see)
        told = [_asked(engine, batch, prompt, 20) for prompt in PROMPTS[:3]]
        for _ in range(4):
            batch.step()
        needs = engine.plan.needs
        engine.resize(ram=engine.plan.ram_overhead + needs.resident_bytes + needs.least_slots_bytes)
        before, _ = len(seen), batch.step()
        assert seen[before:] == [3 * 2] * 4  # of three tokens two experts each, in four layers
        finish(batch)
        assert [memory.ids for memory in told] == alone


@pytest.fixture
def no_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts are read as soon as they are there."""
    monkeypatch.setattr(TimeShares, "may_read", lambda self, running: True)


def test_prompts_are_read_in_step_with_others_next_tokens(qwen: Path, no_shares: None) -> None:
    """Each layer's experts are asked for once, by both; and what they say is what they say alone."""
    with _engine(qwen) as engine:
        alone = [_alone(engine, prompt, 6) for prompt in PROMPTS[:4]]
        batch = engine.live_batch()
        layers = engine.model.config.num_hidden_layers
        told = [_asked(engine, batch, prompt, 6) for prompt in PROMPTS[:2]]
        batch.step()
        told += [_asked(engine, batch, prompt, 6) for prompt in PROMPTS[2:4]]
        before = engine.stats()["forwards"]
        batch.step()
        assert engine.stats()["forwards"] == before + layers
        assert batch.totals.new_tokens == 2 + 4 and not batch.turns.reading
        finish(batch)
        assert [each.ids for each in told] == alone


def test_what_strikes_a_pass_of_both_ends_both_and_nobody_later(qwen: Path, no_shares: None) -> None:
    with _engine(qwen) as engine:
        batch = engine.live_batch()
        told = [_asked(engine, batch, prompt, 6) for prompt in PROMPTS[:2]]
        batch.step()
        told.append(_asked(engine, batch, PROMPTS[2], 6))
        fetch, layers = engine.cache.fetch, iter(range(99))

        def fail(*args: Any, **given: Any) -> Any:
            if next(layers) == 2:
                raise StorageError("the disk is gone")
            return fetch(*args, **given)

        engine.cache.fetch = fail  # type: ignore[method-assign]
        batch.step()
        assert [each.answer and each.answer.error for each in told] == ["the disk is gone"] * 3
        told.append(_asked(engine, batch, PROMPTS[3], 6))
        finish(batch)
        assert told[-1].ids == _alone(engine, PROMPTS[3], 6)


def test_a_failing_disk_ends_those_it_struck_and_nobody_else(qwen: Path) -> None:
    with _engine(qwen) as engine:
        batch = engine.live_batch()
        seen: list[Exception] = []
        batch.on_error = seen.append
        one = _asked(engine, batch, PROMPTS[0], 5)
        batch.step()
        step, struck = batch._rows.step, [True]

        def fail(tokens: torch.Tensor) -> torch.Tensor:
            if struck.pop():
                raise OSError("no such device /dev/secret")
            return step(tokens)

        batch._rows.step = fail  # type: ignore[method-assign]
        two = _asked(engine, batch, PROMPTS[1], 5)
        batch.step()
        finish(batch)
        assert one.answer is not None and one.answer.error is not None and "secret" not in one.answer.error
        assert [str(error) for error in seen] == ["no such device /dev/secret"]
        assert two.ids == _alone(engine, PROMPTS[1], 5)


def test_penalties_biases_and_log_probabilities(qwen: Path) -> None:
    with _engine(qwen) as engine:
        batch = engine.live_batch()
        plain = _alone(engine, PROMPTS[5], 12)
        biased = _asked(engine, batch, PROMPTS[5], 4, steering=Steering(logit_bias={9: 100.0}))
        barred = _asked(engine, batch, PROMPTS[5], 1, steering=Steering(logit_bias={plain[0]: -100.0}))
        fresh = _asked(engine, batch, PROMPTS[5], 40, steering=Steering(presence_penalty=2e4))
        told = _asked(engine, batch, PROMPTS[5], 12, steering=Steering(logprobs=3))
        finish(batch)
        assert biased.ids == [9] * 4
        assert barred.ids != plain[:1]
        assert len(set(fresh.ids)) == 40
        assert told.ids == plain == [each.token for each in told.tokens]
        for each in told.tokens:
            assert each.likeliest[0] == (each.token, each.logprob) and len(each.likeliest) == 3
            assert each.logprob < 0 and each.likeliest[1][1] <= each.logprob
