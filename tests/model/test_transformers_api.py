"""What we hook into transformers takes effect in `generate`, whichever release is installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from moe_local import Options, Request, Sampling
from moe_local.engine import Engine, load
from moe_local.errors import CheckpointError
from moe_local.experts.layer import ExpertLayer
from moe_local.generation.kv_reuse import KVState
from moe_local.model import attention
from moe_local.model.hooks import register_forward_hook
from moe_local.model.kv_cache import GrowingLayer
from moe_local.model.modules import EmbeddingOnDisk, EncodedLinear
from moe_local.model.transformers_api import CACHE
from moe_local.store import first_use, pack

PROMPT = [64 + i % 150 for i in range(40)]
GREEDY = Sampling(max_new_tokens=8, temperature=0)


@pytest.fixture(params=["bfloat16", "float32"])
def engine(qwen: Path, request: pytest.FixtureRequest) -> Iterator[Engine]:
    with load(qwen, Options(device="cpu", context=256, experts=0.5, dtype=request.param)) as engine:
        engine.model.generation_config.eos_token_id = None
        yield engine


def _caches(engine: Engine) -> list[Any]:
    """Fills with the KV cache that each forward pass is given."""
    seen: list[Any] = []
    register_forward_hook(engine.model, lambda module, args, inputs: seen.append(inputs.get(CACHE)))
    return seen


def _calls(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[Any]:
    """Fills with the first argument of each call of a function, which still does what it did."""
    seen: list[Any] = []
    original: Callable[..., Any] = getattr(owner, name)

    def watched(*args: Any, **kwargs: Any) -> Any:
        seen.append(args[0])
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, watched)
    return seen


def test_caches_grow_in_place(engine: Engine) -> None:
    places: list[set[int]] = []

    def look(module: nn.Module, args: tuple[Any, ...], inputs: dict[str, Any]) -> None:
        layers = inputs[CACHE].layers if inputs.get(CACHE) is not None else []
        if layers and layers[0].get_seq_length():
            assert {type(layer) for layer in layers} == {GrowingLayer}
            places.append({layer.keys.data_ptr() for layer in layers})

    register_forward_hook(engine.model, look)
    engine.generate(PROMPT, GREEDY)
    assert len(places) >= 7 and all(place == places[0] for place in places)


def test_a_batch_s_caches_grow_in_place(engine: Engine) -> None:
    seen = _caches(engine)
    for _ in engine.batch(Request(PROMPT[at:], GREEDY) for at in range(3)):
        pass
    kinds = {type(layer) for cache in seen if cache is not None for layer in cache.layers}
    assert kinds == {GrowingLayer}


def test_a_chat_goes_on_from_its_cache(engine: Engine) -> None:
    state = KVState()
    engine.generator.generate(PROMPT, GREEDY, state=state)
    seen = _caches(engine)
    assert engine.generator.generate([*PROMPT, 70], GREEDY, state=state).cached_tokens == len(PROMPT)
    assert seen[0] is not None


def test_attention_is_ours(qwen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = _calls(monkeypatch, attention, "_in_blocks")
    alone = _calls(monkeypatch, attention, "attend_native")
    with load(qwen, Options(device="cpu", context=128, dtype="bfloat16")) as engine:
        engine.generate(PROMPT, GREEDY)
        layers = engine.model.config.num_hidden_layers
    assert len(blocks) + len(alone) >= layers * 2  # what it does for later tokens is replayed


def test_experts_are_paged(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = _calls(monkeypatch, ExpertLayer, "forward")
    engine.generate(PROMPT, GREEDY)
    assert len(calls) == 8 * len(engine.load_plan.catalog.layers)
    assert engine.stats()["bytes_read"] > 0


def test_encoded_linears_multiply(mixtral: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = pack(first_use.plan(mixtral, first_use.choose("int8")), tmp_path / "store")
    calls = _calls(monkeypatch, EncodedLinear, "forward")
    with load(store, Options(device="cpu", context=128)) as engine:
        linears = [module for module in engine.model.modules() if isinstance(module, EncodedLinear)]
        engine.model.generation_config.eos_token_id = None
        engine.generate(PROMPT, GREEDY)
    assert linears and len(calls) == 8 * len(linears)


def test_embeddings_are_read_by_rows(mixtral: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with load(mixtral, Options(device="cpu", context=128)) as engine:
        needs = engine.plan.needs
    calls = _calls(monkeypatch, EmbeddingOnDisk, "forward")
    too_little = needs.resident_bytes + needs.all_experts * needs.slot - 1
    with load(mixtral, Options(device="cpu", context=128, vram=too_little)) as engine:
        engine.model.generation_config.eos_token_id = None
        engine.generate(PROMPT, GREEDY)
    assert len(calls) == 8


def test_long_prompts_go_in_chunks(engine: Engine) -> None:
    engine.generator.prefill_chunk = 16
    passes: list[int] = []

    def count(module: nn.Module, args: tuple[Any, ...], inputs: dict[str, Any]) -> None:
        if module is engine.model:
            passes.append(inputs["input_ids"].shape[1])

    register_forward_hook(engine.model, count)
    engine.generate(PROMPT, GREEDY)
    assert passes[:3] == [16, 16, 8] and passes[3:] == [1] * 7


def test_a_piece_comes_with_each_token(engine: Engine) -> None:
    result = engine.generate(PROMPT, GREEDY)
    assert len(result.token_times) == 8 and list(result.token_times) == sorted(set(result.token_times))


def test_what_is_not_a_number_is_refused(engine: Engine) -> None:
    def spoil(module: nn.Module, args: Any, out: Any) -> Any:
        out.logits[..., 5] = torch.nan
        return out

    engine.model.register_forward_hook(spoil)
    with pytest.raises(CheckpointError, match="not a number"):
        engine.generate(PROMPT, GREEDY)
