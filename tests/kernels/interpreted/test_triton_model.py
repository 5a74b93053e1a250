"""Whole models by the Triton kernels, interpreted: the tokens that decoding every expert gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from moe_local import Options, Sampling, load
from moe_local.kernels import expert, triton_dense, triton_experts
from moe_local.testing import architecture, write_tiny_checkpoint

OPTIONS = Options(device="cpu", context=64, dtype="float32", experts=0.5)
ALL = Options(device="cpu", context=64, dtype="float32")
GREEDY = Sampling(max_new_tokens=3, temperature=0)


def _interpreted(monkeypatch: pytest.MonkeyPatch, watched: str) -> list[int]:
    """Has the Triton kernels used; gets longer with each call of this method of theirs."""
    calls: list[int] = []
    method = getattr(triton_experts.TritonExperts, watched)

    def counted(self: triton_experts.TritonExperts, *arguments: object) -> object:
        calls.append(1)
        return method(self, *arguments)

    monkeypatch.setattr(triton_experts.TritonExperts, watched, counted)
    monkeypatch.setattr(expert, "native_experts", lambda *arguments, **options: None)
    for module in (triton_experts, triton_dense):
        monkeypatch.setattr(module, "usable", lambda device: True)
    return calls


@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss"])
def test_a_model_says_the_same(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = write_tiny_checkpoint(architecture(name), tmp_path / name)
    with load(checkpoint, OPTIONS) as engine:
        wanted = engine.generate("the hen and", GREEDY)
    started = _interpreted(monkeypatch, "start")
    with load(checkpoint, OPTIONS) as engine:
        found = engine.generate("the hen and", GREEDY)
    assert started and found.token_ids == wanted.token_ids


@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss"])
def test_a_model_says_the_same_from_the_table(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = write_tiny_checkpoint(architecture(name), tmp_path / name)
    with load(checkpoint, ALL) as engine:
        wanted = engine.generate("the hen and", GREEDY)
    run = _interpreted(monkeypatch, "run")
    with load(checkpoint, ALL) as engine:
        for layer, experts in enumerate(engine.cache.experts):
            engine.cache.warm(layer, range(experts))
        found = engine.generate("the hen and", GREEDY)
    assert len(run) == found.counters.forwards
    assert (found.token_ids, found.counters.misses) == (wanted.token_ids, 0)
    assert found.counters.lookups == wanted.counters.lookups
