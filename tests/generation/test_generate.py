"""Streaming, stop strings, interruption, and KV caches that go on from turn to turn."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from moe_local import Options, Sampling
from moe_local.engine import Engine, load
from moe_local.errors import CheckpointError, MoeLocalError
from moe_local.generation.kv_reuse import KVState
from moe_local.testing import architecture, write_tiny_checkpoint

GREEDY = Sampling(max_new_tokens=24, temperature=0)


@pytest.fixture(scope="module")
def engine(qwen: Path) -> Iterator[Engine]:
    with load(qwen, Options(context=256, experts=0.5)) as engine:
        engine.model.generation_config.eos_token_id = None
        yield engine


def test_the_pieces_are_the_text(engine: Engine) -> None:
    pieces: list[str] = []
    result = engine.generate("one two three", GREEDY, on_text=pieces.append)
    assert "".join(pieces) == result.text
    assert result.text == engine.generator.tokenizer.decode(result.token_ids, skip_special_tokens=True)
    assert result.finish_reason == "length"
    assert result.new_tokens == 24
    assert 0 < result.time_to_first_token < result.seconds
    assert result.tokens_per_second > 0
    assert result.counters.lookups > 0


def test_an_end_token_stops(engine: Engine) -> None:
    free = engine.generate("one two three", GREEDY)
    engine.model.generation_config.eos_token_id = [free.token_ids[4]]
    try:
        result = engine.generate("one two three", GREEDY)
    finally:
        engine.model.generation_config.eos_token_id = None
    assert result.finish_reason == "stop"
    assert result.token_ids == free.token_ids[: free.token_ids.index(free.token_ids[4]) + 1]


@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_stop_string_ends_the_text_before_it(engine: Engine, length: int) -> None:
    free = engine.generate("one two three", GREEDY).text
    start = next(i for i in range(3, len(free) - length) if "\ufffd" not in free[i : i + length])
    stop = free[start : start + length]
    pieces: list[str] = []
    sampling = Sampling(max_new_tokens=24, temperature=0, stop=("never to be seen", stop))
    result = engine.generate("one two three", sampling, on_text=pieces.append)
    assert result.text == free[: free.index(stop)] == "".join(pieces)
    assert result.finish_reason == "stop"


class AtALook(threading.Event):
    """Set from some look on: each layer looks while the prompt is read, and then each token."""

    def __init__(self, look: int) -> None:
        super().__init__()
        self.looks, self._look = 0, look

    def is_set(self) -> bool:
        self.looks += 1
        return self.looks >= self._look


def test_an_interrupt_ends_after_the_token_under_way(engine: Engine) -> None:
    layers = engine.model.config.num_hidden_layers
    result = engine.generate("one two three", GREEDY, interrupt=AtALook(layers + 3))
    assert result.finish_reason == "interrupted"
    assert result.new_tokens == 3


def test_an_interrupt_ends_a_prompt_in_any_layer(engine: Engine) -> None:
    """At once, and what was computed before goes on being of use."""
    wanted = engine.generator.generate([*range(5, 30), 7, 8, 9], GREEDY)
    for layer in range(1, engine.model.config.num_hidden_layers + 1):
        state, looks = KVState(), AtALook(layer)
        before = engine.generator.generate(list(range(5, 30)), Sampling(max_new_tokens=1, temperature=0), state=state)
        found = engine.generator.generate([*range(5, 30), 7, 8], GREEDY, state=state, interrupt=looks)
        assert (found.finish_reason, found.new_tokens, found.text) == ("interrupted", 0, "")
        assert looks.looks == layer
        assert found.seconds >= 0 and found.tokens_per_second == 0
        again = engine.generator.generate([*range(5, 30), 7, 8, 9], GREEDY, state=state)
        assert (again.cached_tokens, again.token_ids) == (before.prompt_tokens, wanted.token_ids)


def test_a_first_prompt_that_is_ended_leaves_nothing_behind(engine: Engine) -> None:
    wanted, state = engine.generator.generate([5, 6, 7], GREEDY), KVState()
    ended = threading.Event()
    ended.set()
    assert engine.generator.generate([5, 6, 7], GREEDY, state=state, interrupt=ended).new_tokens == 0
    again = engine.generator.generate([5, 6, 7], GREEDY, state=state)
    assert (again.cached_tokens, again.token_ids) == (0, wanted.token_ids)


def test_prompts_that_cannot_be(engine: Engine) -> None:
    with pytest.raises(MoeLocalError, match="empty"):
        engine.generate([], GREEDY)
    with pytest.raises(MoeLocalError, match="context holds 256"):
        engine.generate([1] * 256, GREEDY)


def test_the_context_bounds_the_answer(engine: Engine) -> None:
    result = engine.generate([65] * 250, Sampling(temperature=0))
    assert (result.new_tokens, result.finish_reason) == (6, "length")


def test_a_kept_cache_gives_the_same_tokens(engine: Engine) -> None:
    """Going on, going back a little, and starting over."""
    first = list(range(60, 90))
    state = KVState()
    engine.generator.generate(first, GREEDY, state=state)
    for ids, at_least in [([*first, 5, 6, 7], 30), ([*first[:20], 9], 20), (first, 20), ([1, 2, 3], 0)]:
        kept = engine.generator.generate(ids, GREEDY, state=state)
        fresh = engine.generator.generate(ids, GREEDY)
        assert kept.token_ids == fresh.token_ids
        assert kept.cached_tokens >= at_least
        assert fresh.cached_tokens == 0


@pytest.mark.parametrize("name", ["gpt_oss", "jamba", "qwen3_next", "deepseek_v2"])
def test_caches_that_cannot_be_cut_are_made_again(name: str, tmp_path: Path) -> None:
    """Sliding windows and recurrent states: exactness first."""
    write_tiny_checkpoint(architecture(name), tmp_path)
    ids = list(range(60, 80))
    with load(tmp_path, Options(context=128)) as engine:
        engine.model.generation_config.eos_token_id = None
        state = KVState()
        for prompt in (ids, [*ids[:10], 7, 8], ids):
            kept = engine.generator.generate(prompt, GREEDY, state=state)
            assert kept.token_ids == engine.generator.generate(prompt, GREEDY).token_ids


def test_a_long_prompt_in_chunks_is_the_same(qwen: Path) -> None:
    ids = [64 + i % 150 for i in range(100)]
    with load(qwen, Options(context=256)) as engine:
        engine.model.generation_config.eos_token_id = None
        whole = engine.generate(ids, GREEDY).token_ids
        engine.generator.prefill_chunk = 16
        assert engine.generate(ids, GREEDY).token_ids == whole


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"temperature": -1}, "--temperature"),
        ({"temperature": float("nan")}, "--temperature"),
        ({"seed": 1 << 64}, "--seed"),
        ({"top_p": 1.5}, "--top-p"),
        ({"top_k": -1}, "--top-k"),
        ({"min_p": 2}, "--min-p"),
        ({"max_new_tokens": 0}, "--max-new-tokens"),
        ({"repetition_penalty": 0}, "--repetition-penalty"),
        ({"repetition_penalty": float("nan")}, "--repetition-penalty"),
        ({"stop": ("",)}, "stop string"),
    ],
)
def test_sampling_that_makes_no_sense(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(MoeLocalError, match=said):
        Sampling(**wrong)  # type: ignore[arg-type]


def test_next_to_no_temperature_is_greedy(engine: Engine) -> None:
    cold = Sampling(temperature=1e-45, max_new_tokens=8)
    assert engine.generate("hello", cold).token_ids == engine.generate("hello", GREEDY).token_ids[:8]


@pytest.mark.parametrize("number", [float("inf"), float("nan")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_is_no_number_is_refused(qwen: Path, number: float, temperature: float) -> None:
    def spoil(module: Any, args: Any, out: Any) -> Any:
        out.logits[..., 5] = number
        return out

    with load(qwen, Options(device="cpu", context=64)) as engine:
        engine.model.register_forward_hook(spoil)
        with pytest.raises(CheckpointError, match="not a number"):
            engine.generate("hi", Sampling(max_new_tokens=4, temperature=temperature))


def test_what_a_model_rules_out_is_no_damage(engine: Engine) -> None:
    def rule_out(module: Any, args: Any, out: Any) -> Any:
        out.logits[..., 100:] = -float("inf")
        return out

    hook = engine.model.register_forward_hook(rule_out)
    result = engine.generate("hi", Sampling(max_new_tokens=4, temperature=1, seed=0))
    hook.remove()
    assert max(result.token_ids) < 100


def test_a_long_text_is_refused_before_all_of_it_is_tokens(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    tokens = engine.generator.encoder._tokens

    def watched(text: str, **more: Any) -> list[int]:
        seen.append(len(text))
        return tokens(text, **more)

    monkeypatch.setattr(engine.generator.encoder, "_tokens", watched)
    with pytest.raises(MoeLocalError, match=r"more than .* tokens and the context holds 256"):
        engine.generate("the hen " * 200_000, GREEDY)
    assert sum(seen) < 100_000


@pytest.mark.parametrize("most", [1, 50, 5000])
def test_the_first_tokens_of_a_long_text(engine: Engine, most: int) -> None:
    text = "the hen and\n the other hen, " * 3000
    assert engine.generator.encoder.encode_text(text, most) == engine.generator.encoder.encode_text(text)[:most]


def test_a_configuration_that_does_not_fit_the_weights_is_said(engine: Engine) -> None:
    def misfit(module: Any, args: Any, inputs: Any) -> None:
        torch.ones(2) + torch.ones(3)

    hook = engine.model.register_forward_pre_hook(misfit, with_kwargs=True)
    with pytest.raises(CheckpointError, match="does not run as its configuration says"):
        engine.generate("hi", GREEDY)
    hook.remove()
