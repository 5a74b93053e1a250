"""Continuous batching: joining, ending, making room, shared beginnings, sampling."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moe_local.engine import Engine, load
from moe_local.generation.batch import Answer, BatchGenerator, Request
from moe_local.generation.sampling import Sampling
from moe_local.planning.options import Options
from moe_local.planning.plan_load import plan_load

PROMPTS = [[5 + (i * 31 + n * 7) % 200 for i in range(2 + n * 5 % 23)] for n in range(12)]


def _greedy(count: int) -> Sampling:
    return Sampling(max_new_tokens=count, temperature=0)


def _engine(path: Path, **options: int) -> Engine:
    chosen = {"context": 128, **options}
    engine = load(path, Options(device="cpu", experts=0.5, **chosen))  # type: ignore[arg-type]
    engine.model.generation_config.eos_token_id = None
    return engine


def _run(generator: BatchGenerator, requests: Sequence[Request]) -> dict[int, Answer]:
    tagged = [Request(r.prompt, r.sampling, r.system, r.raw, tag=n) for n, r in enumerate(requests)]
    return {answer.request.tag: answer for answer in generator.run(tagged)}


def test_sequences_join_as_others_end(qwen: Path) -> None:
    requests = [Request(prompt, _greedy(3 + n % 5 * 4)) for n, prompt in enumerate(PROMPTS)]
    with _engine(qwen, max_sequences=4, tokens_per_sequence=48) as engine:
        alone = [engine.generate(list(r.prompt), r.sampling).token_ids for r in requests]  # type: ignore[arg-type]
        generator = engine.batch_generator()
        found = _run(generator, requests)
        assert [list(found[n].token_ids) for n in range(len(requests))] == alone
        assert generator.progress.new_tokens == sum(map(len, alone))
        assert generator.progress.passes < sum(map(len, alone)) / 2


def test_one_makes_room_when_all_grow(qwen: Path) -> None:
    requests = [Request(prompt[:4], _greedy(130)) for prompt in PROMPTS[2:5]]
    with _engine(qwen, max_sequences=3, tokens_per_sequence=10, context=384) as engine:
        assert engine.load_plan.kv_tokens == 384
        generator = engine.batch_generator()
        found = _run(generator, requests)
        assert generator.progress.put_back > 0
        for number, request in enumerate(requests):
            assert list(found[number].token_ids) == engine.generate(list(request.prompt), request.sampling).token_ids  # type: ignore[arg-type]


def test_a_shared_beginning_is_computed_once(qwen: Path) -> None:
    system = [7 + i * 13 % 200 for i in range(60)]
    requests = [Request(system + prompt, _greedy(5)) for prompt in PROMPTS]
    with _engine(qwen, max_sequences=6, tokens_per_sequence=96) as engine:
        generator = engine.batch_generator()
        found = _run(generator, requests)
        assert generator.progress.shared_tokens == 60 * len(requests)
        for number, request in enumerate(requests):
            assert list(found[number].token_ids) == engine.generate(list(request.prompt), request.sampling).token_ids  # type: ignore[arg-type]


def test_padding_needs_no_experts(qwen: Path) -> None:
    """Two prompts of different lengths ask for what both ask for alone, once."""
    short, long = PROMPTS[0], PROMPTS[4]
    with _engine(qwen, max_sequences=2, tokens_per_sequence=64) as engine:
        needed: list[set[tuple[int, int]]] = []
        for prompts in ([short], [long], [short, long]):
            generator = engine.batch_generator()
            before = engine.cache.counters.snapshot()
            _run(generator, [Request(prompt, _greedy(1)) for prompt in prompts])
            needed.append({("lookups", (engine.cache.counters - before).lookups)})  # type: ignore[arg-type]
        alone, other, both = (next(iter(each))[1] for each in needed)
        assert max(alone, other) <= both <= alone + other


def test_what_ends_a_sequence(qwen: Path) -> None:
    with _engine(qwen, max_sequences=2, tokens_per_sequence=64) as engine:
        whole = engine.generate("hello", _greedy(12))
        stop = whole.text[3:5]
        assert stop and stop not in whole.text[:3]
        engine.model.generation_config.eos_token_id = [whole.token_ids[6]]
        answers = list(
            engine.batch(
                [
                    Request("hello", Sampling(max_new_tokens=12, temperature=0, stop=(stop,))),
                    Request("hello", _greedy(12)),
                    Request("hello", _greedy(2)),
                ]
            )
        )
        reasons = {answer.new_tokens: answer.finish_reason for answer in answers}
        assert reasons[2] == "length"
        assert sorted(answer.finish_reason for answer in answers) == ["length", "stop", "stop"]
        assert all(stop not in answer.text for answer in answers if answer.request.sampling.stop)


def test_bad_requests_are_answered_with_their_error(qwen: Path) -> None:
    with _engine(qwen, max_sequences=2, tokens_per_sequence=64) as engine:
        bad = [Request([]), Request([10**9]), Request([5] * 500), Request([{"role": "user"}])]
        answers = list(engine.batch([*bad, "hello"]))
        assert len(answers) == 5
        errors = [answer.error for answer in answers if answer.error]
        assert len(errors) == 4
        assert answers[-1].error is None


def test_sampling_is_each_sequences_own(qwen: Path) -> None:
    sampled = [Request("hello", Sampling(max_new_tokens=8, temperature=1.0, seed=seed)) for seed in (1, 2, 1)]
    filtered = Request("hello", Sampling(max_new_tokens=8, temperature=1.0, top_p=1e-6, min_p=0.5, seed=3))
    with _engine(qwen, max_sequences=5, tokens_per_sequence=64) as engine:
        found = _run(engine.batch_generator(), [*sampled, filtered, Request("hello", _greedy(8))])
        assert found[0].token_ids == found[2].token_ids != found[1].token_ids
        assert found[3].token_ids == found[4].token_ids  # only the likeliest passes


def test_penalties_see_what_came_before(qwen: Path) -> None:
    penalised = Sampling(max_new_tokens=10, temperature=0, repetition_penalty=5.0)
    with _engine(qwen, max_sequences=2, tokens_per_sequence=64) as engine:
        found = _run(engine.batch_generator(), [Request("hello", penalised), Request("hello again", penalised)])
        assert list(found[0].token_ids) == engine.generate("hello", penalised).token_ids
        assert list(found[1].token_ids) == engine.generate("hello again", penalised).token_ids


def test_an_interrupt_ends_it_after_a_pass(qwen: Path) -> None:
    event = threading.Event()
    with _engine(qwen, max_sequences=2, tokens_per_sequence=64) as engine:
        answers = []
        for answer in engine.batch([Request("hello", _greedy(2 + 20 * n)) for n in range(4)], event):
            answers.append(answer)
            event.set()
        assert len(answers) < 4
        assert engine.generate("hello", _greedy(3)).new_tokens == 3


def test_fewer_sequences_where_memory_is_short(qwen: Path) -> None:
    wanted = Options(device="cpu", context=128, max_sequences=64, tokens_per_sequence=128)
    roomy = plan_load(qwen, wanted).plan
    needs = roomy.needs
    assert needs.sequences == 64
    ram = roomy.ram_overhead + needs.dense + needs.workspace + needs.kv_cache
    with load(qwen, replace(wanted, ram=ram + (8 << 20))) as engine:  # this process grows a little meanwhile
        assert 1 < engine.load_plan.sequences < 64
        assert engine.plan.ram_used <= engine.plan.ram


@pytest.mark.parametrize("given", [0, -1])
def test_no_sequences_is_refused(given: int) -> None:
    with pytest.raises(Exception, match="cannot be generated"):
        Options(max_sequences=given)


def test_a_sequence_whose_output_is_no_number_ends_alone(qwen: Path) -> None:
    with _engine(qwen, max_sequences=4, tokens_per_sequence=64) as engine:
        requests = [Request(prompt, _greedy(6)) for prompt in PROMPTS[3:7]]
        wanted = {n: list(answer.token_ids) for n, answer in _run(engine.batch_generator(), requests).items()}

        def spoil(module: Any, args: Any, out: Any) -> Any:
            if out.logits.shape[0] == 4:
                out.logits[1, ..., 5] = float("inf")
            return out

        engine.model.register_forward_hook(spoil)
        found = _run(engine.batch_generator(), requests)
        broken = [answer for answer in found.values() if answer.error]
        assert len(broken) == 1 and "not a number" in str(broken[0].error)
        assert all(list(a.token_ids) == wanted[n] for n, a in found.items() if a.error is None)
