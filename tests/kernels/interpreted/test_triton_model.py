"""Whole models by the Triton kernels, interpreted: the tokens that decoding every expert gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from moe_local import Options, Sampling, load
from moe_local.kernels import expert, triton_dense, triton_experts
from moe_local.testing import architecture, write_tiny_checkpoint

OPTIONS = Options(device="cpu", context=64, dtype="float32", experts=0.5)
GREEDY = Sampling(max_new_tokens=3, temperature=0)


@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss"])
def test_a_model_says_the_same(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = write_tiny_checkpoint(architecture(name), tmp_path / name)
    with load(checkpoint, OPTIONS) as engine:
        wanted = engine.generate("the hen and", GREEDY)
    started: list[int] = []
    start = triton_experts.TritonExperts.start

    def counted(self: triton_experts.TritonExperts, *arguments: object) -> object:
        started.append(1)
        return start(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(triton_experts.TritonExperts, "start", counted)
    monkeypatch.setattr(expert, "native_experts", lambda *arguments, **options: None)
    for module in (triton_experts, triton_dense):
        monkeypatch.setattr(module, "usable", lambda device: True)
    with load(checkpoint, OPTIONS) as engine:
        found = engine.generate("the hen and", GREEDY)
    assert started and found.token_ids == wanted.token_ids
