"""Decoder layers that are recorded for one token and replayed for the next ones."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from moe_local.engine import Engine, load
from moe_local.experts.layer import ExpertLayer
from moe_local.generation.kv_reuse import KVState
from moe_local.generation.sampling import Sampling
from moe_local.kernels import native
from moe_local.model.kv_cache import with_room
from moe_local.model.transformers_api import CACHE, kv_cache
from moe_local.planning.options import Options
from moe_local.testing import architecture, tiny_inputs, write_tiny_checkpoint

if native.missing() is not None:
    pytest.skip("the native kernels are not built", allow_module_level=True)

from moe_local.model.replay import _REPLAY, _Replay

TOKENS = 80  # of which the 64th needs a larger buffer


@contextmanager
def tiny(name: str, directory: Path, **options: Any) -> Iterator[Engine]:
    if not (directory / "config.json").exists():
        write_tiny_checkpoint(architecture(name), directory, dtype=torch.bfloat16)
    with load(directory, Options(device="cpu", context=160, **{"experts": 1.0, **options})) as engine:
        yield engine


def start(engine: Engine, name: str) -> Any:
    return kv_cache(engine.model(**tiny_inputs(architecture(name))))


def decode(engine: Engine, cache: Any, count: int, **more: Any) -> list[Tensor]:
    """Logits of `count` tokens after what is in the cache."""
    ids = torch.randint(0, 90, (count,), generator=torch.Generator().manual_seed(5)).tolist()
    return [engine.model(torch.tensor([[token]]), **{CACHE: cache}, **more).logits.clone() for token in ids]


def replays(engine: Engine) -> list[_Replay]:
    return [vars(module)[_REPLAY] for module in engine.model.modules() if _REPLAY in vars(module)]


def played(engine: Engine) -> list[int]:
    return [replay.played for replay in replays(engine)]


@pytest.fixture
def modules_only(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Called: from then on nothing is replayed."""
    return lambda: monkeypatch.setattr(_Replay, "suits", lambda self, hidden: False)


def equal(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return len(ours) == len(theirs) and all(map(torch.equal, ours, theirs))


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("qwen3_moe", [True, True, True, True]),
        ("mixtral", [True, True, True, True]),
        ("glm4_moe", [True, True, True, True]),  # a first layer without experts, experts that all tokens see
        ("minimax_m2", [True, True, True, True]),
        ("afmoe", [False, True, False, True]),  # sliding windows are another kind of cache
        ("jamba", [False, True, False, True]),  # so are the states of Mamba
        ("deepseek_v3", [False, False, False, False]),  # all keys are made anew of what is cached, for each token
    ],
)
@torch.inference_mode()
def test_every_bit_is_what_the_modules_compute(
    name: str, layers: list[bool], tmp_path: Path, modules_only: Any
) -> None:
    with tiny(name, tmp_path) as engine:
        ours = decode(engine, start(engine, name), TOKENS)
        assert [count > TOKENS - 8 for count in played(engine)] == layers
        assert all(
            replay._recordings <= (1 if there else 4) for replay, there in zip(replays(engine), layers, strict=True)
        )
        modules_only()
        theirs = decode(engine, start(engine, name), TOKENS)
    assert equal(ours, theirs)


@torch.inference_mode()
def test_with_few_experts_in_memory(tmp_path: Path, modules_only: Any) -> None:
    with tiny("qwen3_moe", tmp_path, experts=0.5) as engine:
        ours = decode(engine, start(engine, "qwen3_moe"), 20)
        assert min(played(engine)) > 12
    modules_only()
    with tiny("qwen3_moe", tmp_path, experts=0.5) as engine:
        assert equal(ours, decode(engine, start(engine, "qwen3_moe"), 20))


@torch.inference_mode()
def test_other_caches_and_cropped_ones(tmp_path: Path, modules_only: Any) -> None:
    def conversation(engine: Engine) -> list[Tensor]:
        first, second = start(engine, "qwen3_moe"), start(engine, "qwen3_moe")
        logits = decode(engine, first, 9)
        logits += decode(engine, second, 7)
        first.crop(-4)
        logits += decode(engine, first, 9)
        return logits + decode(engine, second, 60)

    with tiny("qwen3_moe", tmp_path) as engine:
        ours = conversation(engine)
        assert min(played(engine)) > 70
        modules_only()
        assert equal(ours, conversation(engine))


@pytest.mark.parametrize("lengths", [(30, 2, 9), (9, 30, 1), (40, 39, 3)])
@torch.inference_mode()
def test_a_shorter_text_after_a_longer_one(lengths: tuple[int, ...], tmp_path: Path, modules_only: Any) -> None:
    def conversations(engine: Engine) -> list[Tensor]:
        logits: list[Tensor] = []
        for length in lengths:
            ids = torch.arange(3, 3 + length)[None]
            logits += decode(engine, kv_cache(engine.model(ids, use_cache=True)), 6)
        return logits

    with tiny("qwen3_moe", tmp_path) as engine:
        ours = conversations(engine)
        assert min(played(engine)) >= 4 * len(lengths)
        modules_only()
        assert equal(ours, conversations(engine))


@torch.inference_mode()
def test_no_cache_is_kept(tmp_path: Path) -> None:
    with tiny("qwen3_moe", tmp_path) as engine:
        cache = start(engine, "qwen3_moe")
        decode(engine, cache, 6)
        assert min(played(engine)) > 0
        memory = [weakref.ref(states) for layer in cache.layers for states in (layer.keys, layer.values)]
        memory += [weakref.ref(with_room(states())) for states in memory]
        memory.append(weakref.ref(cache))
        del cache
        assert [held() for held in memory] == [None] * 17


@torch.inference_mode()
def test_batches_and_masks_are_left_to_the_modules(tmp_path: Path) -> None:
    with tiny("qwen3_moe", tmp_path) as engine:
        cache = kv_cache(engine.model(torch.tensor([[1, 2, 3], [4, 5, 6]]), use_cache=True))
        for _ in range(4):
            engine.model(torch.tensor([[7], [8]]), **{CACHE: cache})
        cache = kv_cache(engine.model(torch.tensor([[1, 2, 3]]), attention_mask=torch.tensor([[0, 1, 1]])))
        for length in range(4, 8):
            mask = torch.ones(1, length, dtype=torch.int64)
            mask[0, 0] = 0
            engine.model(torch.tensor([[7]]), attention_mask=mask, **{CACHE: cache})
        assert played(engine) == [0, 0, 0, 0]


@torch.inference_mode()
def test_hooks_are_called(tmp_path: Path, modules_only: Any) -> None:
    with tiny("qwen3_moe", tmp_path) as engine:
        cache = start(engine, "qwen3_moe")
        decode(engine, cache, 5)
        before = played(engine)
        seen: list[Tensor] = []
        hook = engine.model.get_submodule("model.layers.1.self_attn").register_forward_hook(
            lambda module, args, output: seen.append(output[0])
        )
        decode(engine, cache, 3)
        assert len(seen) == 3
        assert [after - count for after, count in zip(played(engine), before, strict=True)] == [3, 0, 3, 3]
        hook.remove()
        ours = decode(engine, cache, 3)
        assert len(seen) == 3
        modules_only()
        other = start(engine, "qwen3_moe")
        for count in (5, 3):
            decode(engine, other, count)
        assert equal(ours, decode(engine, other, 3))


@torch.inference_mode()
def test_hidden_states_that_are_asked_for_stay_as_they_are(tmp_path: Path) -> None:
    with tiny("qwen3_moe", tmp_path) as engine:
        cache = start(engine, "qwen3_moe")
        decode(engine, cache, 5)
        first = engine.model(torch.tensor([[3]]), **{CACHE: cache}, output_hidden_states=True).hidden_states
        copies = [state.clone() for state in first]
        decode(engine, cache, 5)
        assert equal(list(first), copies)


def test_gradients_and_inference_mode_come_and_go(tmp_path: Path, modules_only: Any) -> None:
    def passes(engine: Engine) -> list[Tensor]:
        with torch.no_grad():
            cache = start(engine, "mixtral")
            logits = decode(engine, cache, 6)
        with torch.inference_mode():
            logits += decode(engine, cache, 6)
        logits.append(engine.model(torch.tensor([[5]]), **{CACHE: kv_cache_copy(engine)}).logits.detach().clone())
        with torch.no_grad():
            return logits + decode(engine, start(engine, "mixtral"), 6)

    def kv_cache_copy(engine: Engine) -> Any:
        with torch.no_grad():
            return start(engine, "mixtral")

    with tiny("mixtral", tmp_path) as engine:
        ours = passes(engine)
        assert min(played(engine)) > 4
        modules_only()
        assert equal(ours, passes(engine))


@pytest.mark.parametrize("token", [0, 1, 2, 5])
@torch.inference_mode()
def test_an_interrupt_at_any_token(
    token: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, modules_only: Any
) -> None:
    forward = ExpertLayer.forward
    calls = 0

    def interrupted(self: ExpertLayer, *given: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 4 * token + 3:
            raise KeyboardInterrupt
        return forward(self, *given)

    with tiny("qwen3_moe", tmp_path) as engine:
        cache = start(engine, "qwen3_moe")
        monkeypatch.setattr(ExpertLayer, "forward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            decode(engine, cache, 8)
        assert not any("forward" in vars(module) for module in engine.model.modules())
        ours = decode(engine, start(engine, "qwen3_moe"), 12)
        assert min(played(engine)) >= 8
        modules_only()
        assert equal(ours, decode(engine, start(engine, "qwen3_moe"), 12))


@torch.inference_mode()
def test_what_depends_on_more_than_its_arguments_is_found_out(tmp_path: Path) -> None:
    with tiny("qwen3_moe", tmp_path) as engine:
        norm: Any = engine.model.get_submodule("model.layers.2.input_layernorm")
        computed, calls = norm.forward, 0

        def scaled(x: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            return computed(x) * (1 + calls)

        vars(norm)["forward"] = scaled
        decode(engine, start(engine, "qwen3_moe"), 12)
        assert [count > 0 for count in played(engine)] == [True, True, False, True]
        assert calls == 13


def test_a_prompt_whose_rest_is_one_token_is_replayed_after(tmp_path: Path) -> None:
    """It is watched while it is read, and no longer."""
    prompt, greedy = [5, 6, 7, 8], Sampling(max_new_tokens=24, temperature=0)
    with tiny("qwen3_moe", tmp_path) as engine:
        engine.model.generation_config.eos_token_id = None
        state, said, counts = KVState(), [], []
        for _ in range(3):
            said.append(engine.generator.generate(prompt, greedy, state=state).token_ids)
            counts.append(played(engine))
        assert said[0] == said[1] == said[2]
        assert all(b - a > 12 for before, after in pairwise(counts) for a, b in zip(before, after, strict=True)), (
            counts
        )
