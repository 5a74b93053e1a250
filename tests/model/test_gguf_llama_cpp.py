"""GGUF files against llama.cpp itself, where it is installed (`pip install llama-cpp-python`).

Unquantised: llama.cpp rounds activations to 8 bits before it multiplies by a quantised matrix, and keeps keys and
values in fp16 always.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from moe_local import Options
from moe_local.engine import load
from moe_local.testing import architecture, tiny_inputs
from moe_local.testing.gguf import ALIKE, NAMES, write_tiny_gguf

llama_cpp = pytest.importorskip("llama_cpp")
# gpt-oss: llama.cpp rounds the bounds of YaRN's ramp, which the model as it was trained does not.
WORST = {"gpt_oss": 1e-5}
OTHERS = {
    "phimoe": "llama.cpp norms it without taking the mean away, and chooses experts by another rule",
    "mellum": "llama.cpp turns all its layers by one base",
}


@pytest.mark.parametrize("name", [*NAMES, *ALIKE])
def test_divergence(name: str, tmp_path: Path) -> None:
    if name in OTHERS:
        pytest.skip(OTHERS[name])
    write_tiny_gguf(architecture(name), tmp_path / "model.gguf", "F32", extra_layer=False)
    ids = tiny_inputs(architecture(name))["input_ids"]
    options = Options(device="cpu", context=64, experts=0.5, dtype="float32")
    with load(tmp_path / "model.gguf", options) as engine, torch.no_grad():
        ours = engine.model(ids).logits[0].log_softmax(-1)
    theirs = _llama_cpp(tmp_path / "model.gguf", ids[0].tolist()).log_softmax(-1)
    assert (ours.exp() * (ours - theirs)).sum(-1).mean() < WORST.get(name, 1e-6)


def _llama_cpp(file: Path, ids: list[int]) -> Tensor:
    model = llama_cpp.Llama(str(file), n_ctx=64, n_threads=1, n_gpu_layers=0, logits_all=True, verbose=False)
    model.eval(ids)
    logits = torch.from_numpy(np.array(model.scores[: len(ids)]))
    model.close()
    return logits
