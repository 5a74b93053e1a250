"""A token's pass as recordings: they say what the modules say, and where they would not, the modules are asked."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from moe_local.engine import Engine, load
from moe_local.errors import StorageError
from moe_local.generation.batch import Request
from moe_local.generation.kv_reuse import KVState
from moe_local.generation.sampling import Sampling
from moe_local.memory.device_graphs import GraphRecorder
from moe_local.model import decode_graphs
from moe_local.model.decode_graphs import DecodeGraphs
from moe_local.model.fixed_places import GrowingView
from moe_local.model.transformers_api import CACHE
from moe_local.planning.options import Options
from moe_local.testing import FailingDisk, architecture, write_tiny_checkpoint
from moe_local.testing.pretend_cuda import PretendCuda, can_pretend, pretend_cuda
from moe_local.testing.pretend_triton import pretend_triton

pytestmark = pytest.mark.skipif(not can_pretend(), reason="torch has CUDA kernels of its own")
OPTIONS = {"context": 128, "dtype": "float32"}
PROMPT = [5, 6, 7, 8]
SHORT = Sampling(max_new_tokens=8, temperature=0)
# Every token kept; a window of them; chunks; recurrent states beside attention, with positions in three dimensions.
WAITS = pytest.mark.skipif(CACHE != "cache", reason="transformers before 5.24 waits for a device in its masks")
RECORDED = (
    "qwen3_moe", "deepseek_v3", pytest.param("gpt_oss", marks=WAITS), "gemma4", "llama4", "jamba", "qwen3_5_moe",
)  # fmt: skip


@pytest.fixture
def gpu() -> Iterator[PretendCuda]:
    with pretend_cuda() as device:
        yield device


@pytest.fixture
def loaded(gpu: PretendCuda) -> Iterator[Callable[..., Engine]]:
    made: list[Engine] = []

    def load_it(path: Path, **more: Any) -> Engine:
        made.append(load(path, Options(device="cuda", **(OPTIONS | more))))
        made[-1].model.generation_config.eos_token_id = None
        return made[-1]

    yield load_it
    for engine in made:
        engine.close()


def _graphs(engine: Engine) -> DecodeGraphs:
    assert engine.generator.graphs is not None
    return engine.generator.graphs


def _on_cpu(path: Path, sampling: Sampling = SHORT, prompt: list[int] = PROMPT) -> list[int]:
    with load(path, Options(device="cpu", **OPTIONS)) as engine:  # type: ignore[arg-type]
        engine.model.generation_config.eos_token_id = None
        return engine.generate(prompt, sampling).token_ids


@pytest.mark.parametrize("name", RECORDED)
def test_turns_are_played(
    name: str, loaded: Callable[..., Engine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through all rooms, past the windows, with prompts between them that the modules read."""
    monkeypatch.setattr(decode_graphs, "_LEAST_ROOM", 16)
    write_tiny_checkpoint(architecture(name), tmp_path)
    on_device = loaded(tmp_path, experts=0.5, host_experts=0.75)
    with load(tmp_path, Options(device="cpu", **OPTIONS)) as on_cpu:  # type: ignore[arg-type]
        assert _turns(on_device) == _turns(on_cpu)
    assert _graphs(on_device).rooms == [16, 32, 64, 128]
    assert _graphs(on_device).played == sum(TURNS) - len(TURNS)  # a turn's first token comes of its prompt


TURNS = (30, 25, 20)  # tokens


def _turns(engine: Engine) -> list[int]:
    engine.model.generation_config.eos_token_id = None
    state, ids = KVState(), list(PROMPT)
    for tokens in TURNS:
        answer = engine.generator.generate(ids, Sampling(max_new_tokens=tokens, temperature=0), state=state)
        ids += [*answer.token_ids, 9, 10, 11]
    return ids


def test_a_state_that_has_no_place_is_left_to_the_modules(loaded: Callable[..., Engine], tmp_path: Path) -> None:
    write_tiny_checkpoint(architecture("glm_moe_dsa"), tmp_path)
    engine = loaded(tmp_path)
    assert engine.generate(PROMPT, SHORT).token_ids == _on_cpu(tmp_path)
    assert _graphs(engine).played == 0


def test_what_a_token_asks_for(gpu: PretendCuda, loaded: Callable[..., Engine], qwen: Path) -> None:
    """One recording more than there are layers, and the experts between them; the host waits for nothing."""
    with pretend_triton():
        engine = loaded(qwen)
        for layer, experts in enumerate(engine.cache.experts):
            engine.cache.warm(layer, range(experts))
        engine.generate(PROMPT, SHORT)
        with gpu.watch() as seen:
            engine.generate(PROMPT, SHORT)
        with gpu.watch() as more:
            engine.generate(PROMPT, Sampling(max_new_tokens=9, temperature=0))
    layers = engine.model.config.num_hidden_layers
    token = more.by_launch - seen.by_launch
    of_recordings = {at: count for at, count in token.items() if at[1] == "graph"}
    assert sum(of_recordings.values()) == layers + 1, token
    of_models = {at: count for at, count in token.items() if at[0].startswith(("transformers/models", "model/"))}
    assert sum(of_models.values()) <= 2 * layers + 5, of_models  # results handed over, the token placed, its logits
    assert more.syncs - seen.syncs <= 3, (more.by_sync - seen.by_sync).items()


def test_each_room_has_its_recordings(
    loaded: Callable[..., Engine], qwen: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode_graphs, "_LEAST_ROOM", 16)
    engine = loaded(qwen)
    long = Sampling(max_new_tokens=90, temperature=0)
    assert engine.generate(PROMPT, long).token_ids == _on_cpu(qwen, long)
    assert _graphs(engine).rooms == [16, 32, 64, 128]
    assert _graphs(engine).played == 90 - 1
    assert engine.generate(PROMPT, long).token_ids == _on_cpu(qwen, long)
    assert _graphs(engine).played == 2 * 90 - 2


def test_a_context_that_is_full(loaded: Callable[..., Engine], qwen: Path) -> None:
    engine = loaded(qwen, context=24)
    all_of_it = Sampling(max_new_tokens=40, temperature=0)
    with load(qwen, Options(device="cpu", context=24, dtype="float32")) as other:
        other.model.generation_config.eos_token_id = None
        wanted = other.generate(PROMPT, all_of_it)
    got = engine.generate(PROMPT, all_of_it)
    assert (got.token_ids, got.finish_reason) == (wanted.token_ids, wanted.finish_reason)
    assert got.new_tokens == 20 and _graphs(engine).played == 19


def test_conversations_that_go_on_and_are_cut(loaded: Callable[..., Engine], qwen: Path) -> None:
    turns = ("Why is it so?", "And then?", "Who says that?")
    said = []
    for engine in (loaded(qwen), load(qwen, Options(device="cpu", **OPTIONS))):  # type: ignore[arg-type]
        with engine:
            engine.model.generation_config.eos_token_id = None
            chat = engine.chat(Sampling(max_new_tokens=6, temperature=0))
            for turn in turns:
                chat.send(turn)
            said.append([message["content"] for message in chat.messages])
            if engine.generator.graphs is not None:
                assert engine.generator.graphs.played == 3 * 5
    assert said[0] == said[1]


def test_the_memory_is_one_conversations_at_a_time(loaded: Callable[..., Engine], qwen: Path) -> None:
    """Another one that is still there leaves the modules to compute; one that has gone leaves its place."""
    engine = loaded(qwen)
    first, second = engine.chat(SHORT), engine.chat(SHORT)
    a = first.send("Why is it so?").token_ids
    played = _graphs(engine).played
    b = second.send("Why is it so?").token_ids
    assert a == b and played > 0 and _graphs(engine).played == played
    first.send("And then?")
    assert _graphs(engine).played > played
    del first
    gc.collect()
    played = _graphs(engine).played
    assert engine.chat(SHORT).send("Why is it so?").token_ids == a
    assert _graphs(engine).played > played


def test_a_model_that_waits_is_not_recorded_and_that_is_said(
    gpu: PretendCuda, loaded: Callable[..., Engine], tmp_path: Path
) -> None:
    write_tiny_checkpoint(architecture("phimoe"), tmp_path)
    engine = loaded(tmp_path)
    said: list[str] = []
    engine.generator.on_notice = said.append
    for _ in range(2):
        assert engine.generate(PROMPT, SHORT).token_ids == _on_cpu(tmp_path)
    assert _graphs(engine).played == 0
    assert len(said) == 1 and "synchronizing" in said[0]
    assert not gpu.is_stuck  # nothing was recorded that fails


@pytest.mark.parametrize("name", ["qwen3_moe", "gemma4", "qwen3_5_moe"])
def test_a_recording_that_fails_leaves_the_state_as_it_was(
    name: str, loaded: Callable[..., Engine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    end = GraphRecorder.end

    def refuse(recorder: GraphRecorder) -> Any:
        end(recorder)
        raise RuntimeError("no more of them")

    write_tiny_checkpoint(architecture(name), tmp_path)
    monkeypatch.setattr(decode_graphs, "_LEAST_ROOM", 16)
    engine = loaded(tmp_path)
    said: list[str] = []
    engine.generator.on_notice = said.append
    began = engine.generate(PROMPT, Sampling(max_new_tokens=10, temperature=0)).token_ids
    assert _graphs(engine).played == 9
    monkeypatch.setattr(GraphRecorder, "end", refuse)
    long = Sampling(max_new_tokens=30, temperature=0)
    assert engine.generate(PROMPT, long).token_ids == _on_cpu(tmp_path, long)
    assert began == _on_cpu(tmp_path, long)[:10]
    assert ["no more of them" in each for each in said] == [True]


@pytest.mark.parametrize("wrong", [0.0, float("nan")])
def test_a_recording_that_says_something_else_is_not_used(
    wrong: float, loaded: Callable[..., Engine], qwen: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = GrowingView.update

    def spoilt(self: GrowingView, keys: torch.Tensor, values: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return update(self, keys, values * wrong, *args, **kwargs)

    monkeypatch.setattr(GrowingView, "update", spoilt)
    engine = loaded(qwen)
    said: list[str] = []
    engine.generator.on_notice = said.append
    first = engine.generate(PROMPT, Sampling(max_new_tokens=2, temperature=0)).token_ids
    assert first == _on_cpu(qwen)[:2] and _graphs(engine).played == 0
    assert ["something else" in each for each in said] == [True]


@pytest.mark.parametrize("name", ["qwen3_moe", "gemma4", "qwen3_5_moe"])
def test_an_interrupt_while_it_is_recorded(
    name: str, loaded: Callable[..., Engine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiny_checkpoint(architecture(name), tmp_path)
    begin, times = GraphRecorder.begin, 0

    def interrupted(self: GraphRecorder) -> None:
        nonlocal times
        begin(self)
        times += 1
        if times == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(GraphRecorder, "begin", interrupted)
    engine = loaded(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        engine.generate(PROMPT, SHORT)
    assert engine.generate(PROMPT, SHORT).token_ids == _on_cpu(tmp_path)
    assert _graphs(engine).played == 7


@pytest.mark.parametrize("path", ["model", "model.layers.0"])
def test_who_watches_a_module_sees_every_token(path: str, loaded: Callable[..., Engine], qwen: Path) -> None:
    engine = loaded(qwen)
    engine.generate(PROMPT, SHORT)
    played, seen = _graphs(engine).played, []
    hook = engine.model.get_submodule(path).register_forward_hook(lambda *_: seen.append(1))
    engine.generate(PROMPT, SHORT)
    assert len(seen) == 8 and _graphs(engine).played == played
    hook.remove()
    engine.generate(PROMPT, SHORT)
    assert len(seen) == 8 and _graphs(engine).played > played


def test_a_batch_takes_the_memory_back(gpu: PretendCuda, loaded: Callable[..., Engine], qwen: Path) -> None:
    engine = loaded(qwen, max_sequences=3)
    wanted = engine.generate(PROMPT, SHORT).token_ids
    before = gpu.memory.live
    answers = list(engine.batch([Request(PROMPT, SHORT), Request([9, 10], SHORT)]))
    assert wanted in [each.token_ids for each in answers]
    del answers
    gc.collect()
    assert gpu.memory.live < before - 2 * 128 * 4 * engine.model.config.num_hidden_layers
    assert engine.generate(PROMPT, SHORT).token_ids == wanted
    assert _graphs(engine).rooms == [128]


@pytest.mark.parametrize("name", ["qwen3_moe", "gemma4", "qwen3_5_moe"])
def test_a_conversation_goes_on_after_a_batch(name: str, loaded: Callable[..., Engine], tmp_path: Path) -> None:
    write_tiny_checkpoint(architecture(name), tmp_path)
    said = []
    for engine in (loaded(tmp_path), load(tmp_path, Options(device="cpu", **OPTIONS))):  # type: ignore[arg-type]
        with engine:
            engine.model.generation_config.eos_token_id = None
            state, ids = KVState(), list(PROMPT)
            for _ in range(3):
                ids += [*engine.generator.generate(ids, SHORT, state=state).token_ids, 9, 10]
                list(engine.batch([Request([5, 6], Sampling(max_new_tokens=2, temperature=0))]))
            said.append(ids)
    assert said[0] == said[1]


def test_a_prompt_of_one_token_and_the_same_one_again(loaded: Callable[..., Engine], qwen: Path) -> None:
    """The rest of a prompt that is one token is watched until it has been read."""
    engine, state = loaded(qwen), KVState()
    for times in (1, 2, 3):
        assert engine.generator.generate(PROMPT, SHORT, state=state).token_ids == _on_cpu(qwen)
        assert _graphs(engine).played == 7 * times


def test_recordings_made_in_inference_mode_are_played_outside(loaded: Callable[..., Engine], qwen: Path) -> None:
    engine = loaded(qwen)
    with torch.inference_mode():
        first = engine.generate(PROMPT, SHORT).token_ids
    assert engine.generate(PROMPT, SHORT).token_ids == first == _on_cpu(qwen)
    assert _graphs(engine).played == 14


def test_a_disk_that_fails_is_none_of_the_recordings_business(
    gpu: PretendCuda, qwen: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, warm_up = threading.Event(), decode_graphs.warm_up

    def with_a_broken_disk(*given: Any) -> Any:
        broken.set()
        return warm_up(*given)

    monkeypatch.setattr(decode_graphs, "warm_up", with_a_broken_disk)
    options = Options(device="cuda", experts=0.25, host_experts=0.25, prefetch="off", **OPTIONS)  # type: ignore[arg-type]
    with load(qwen, options, read_at=lambda reader: FailingDisk(reader, lambda _: broken.is_set())) as engine:
        engine.model.generation_config.eos_token_id = None
        with pytest.raises(StorageError):
            engine.generate(PROMPT, SHORT)
        broken.clear()
        monkeypatch.undo()
        gc.collect()  # the error's frames have the conversation
        assert engine.generate(PROMPT, SHORT).token_ids == _on_cpu(qwen)
        assert _graphs(engine).played == 7


def test_other_budgets_go_on_with_the_recordings(gpu: PretendCuda, loaded: Callable[..., Engine], qwen: Path) -> None:
    engine = loaded(qwen, experts=0.5)
    wanted = engine.generate(PROMPT, SHORT).token_ids
    played = _graphs(engine).played
    engine.resize(vram=engine.plan.vram - (1 << 20) if engine.plan.vram else None)
    assert engine.generate(PROMPT, SHORT).token_ids == wanted
    assert _graphs(engine).played > played


def test_a_closed_engine_leaves_nothing(gpu: PretendCuda, loaded: Callable[..., Engine], qwen: Path) -> None:
    engine = loaded(qwen)
    engine.generate(PROMPT, SHORT)
    gc.disable()
    try:
        engine.close()
        assert gpu.memory.live < 1 << 20
    finally:
        gc.enable()
