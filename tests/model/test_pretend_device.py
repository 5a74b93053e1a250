"""Every architecture on a device of its own memory: half of its experts there, more of them in RAM, the rest on the
disk. It answers, answers a batch and is evaluated, and says what a CPU says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from moe_local.engine import Engine, load
from moe_local.evaluation.perplexity import evaluate
from moe_local.generation.batch import Request
from moe_local.generation.sampling import Sampling
from moe_local.planning import formulas
from moe_local.planning.options import Options
from moe_local.testing import Architecture, architectures, tiny_inputs, write_tiny_checkpoint
from moe_local.testing.pretend_cuda import can_pretend, pretend_cuda
from moe_local.testing.pretend_mps import pretend_mps
from moe_local.units import MIB
from tests.model.refused import CANNOT

pytestmark = pytest.mark.skipif(not can_pretend(), reason="torch has CUDA kernels of its own")
ALWAYS = ("qwen3_moe", "gpt_oss", "deepseek_v2", "mixtral", "granitemoe", "llama4", "jamba", "glm4_moe")
GREEDY = Sampling(max_new_tokens=4, temperature=0)
PROMPTS = ([11, 12, 13], [21, 22, 23, 24, 25], [31])
TEXT = list(range(10, 40))


@dataclass(frozen=True)
class Said:
    logits: torch.Tensor
    tokens: list[int] | None = None
    batch: tuple[tuple[int, ...], ...] = ()
    nll: float = 0.0


def _ask(engine: Engine, found: Architecture) -> Said:
    inputs = {name: tensor.to(engine.model.device) for name, tensor in tiny_inputs(found).items()}
    with torch.no_grad():
        out = engine.model(**inputs)
    logits = (out.logits if "logits" in out else out[0]).cpu()
    if not found.can_generate or engine.model.config.is_encoder_decoder:
        return Said(logits)
    engine.model.generation_config.eos_token_id = None
    tokens = engine.generate(inputs["input_ids"][0].tolist(), GREEDY).token_ids
    answers = sorted(
        engine.batch([Request(p, GREEDY, tag=i) for i, p in enumerate(PROMPTS)]), key=lambda a: a.request.tag
    )
    assert [answer.error for answer in answers] == [None] * len(PROMPTS)
    batch = tuple(tuple(answer.token_ids) for answer in answers)
    return Said(logits, tokens, batch, evaluate(engine.model, TEXT, 16, 8).nll)


RUN = [found for found in architectures() if found.id not in CANNOT]
MARKED = [pytest.param(found, id=found.id, marks=[] if found.name in ALWAYS else [pytest.mark.slow]) for found in RUN]


@pytest.mark.parametrize(("device", "pretended"), [("cuda", pretend_cuda), ("mps", pretend_mps)])
@pytest.mark.parametrize("found", MARKED)
def test_a_device_says_what_a_cpu_says(
    found: Architecture, device: str, pretended: Callable[[], Any], tmp_path: Path
) -> None:
    write_tiny_checkpoint(found, tmp_path)
    small = {"context": 64, "dtype": "float32", "max_sequences": 3, "logits_per_pass": 64}
    with load(tmp_path, Options(device="cpu", **small)) as engine:  # type: ignore[arg-type]
        wanted = _ask(engine, found)
    tiers = Options(device=device, experts=0.5, host_experts=0.75, **small)  # type: ignore[arg-type]
    with pretended() as gpu, load(tmp_path, tiers) as engine:
        assert engine.plan.host_slots is not None
        got = _ask(engine, found)
        stats = engine.stats()
        assert stats["bytes_uploaded"] and (device == "mps" or gpu.streams.in_flight_at_most)
        assert gpu.memory.peak <= (engine.plan.vram_used or 0) - engine.plan.vram_overhead
    torch.testing.assert_close(got.logits, wanted.logits, rtol=1e-4, atol=1e-4)
    assert (got.tokens, got.batch) == (wanted.tokens, wanted.batch)
    assert got.nll == pytest.approx(wanted.nll, rel=1e-4)
    assert gpu.memory.live < 4 * MIB


@pytest.mark.parametrize("context", [256, 500])
@pytest.mark.parametrize("found", [each for each in MARKED if each.values[0].can_generate])
def test_a_long_pass_takes_what_is_planned(
    found: Architecture, context: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the hundred megabytes that are planned beside what follows from the model."""
    monkeypatch.setattr(formulas, "_SLACK", 1 << 20)
    monkeypatch.setattr(formulas, "SCORES", 1 << 12)
    write_tiny_checkpoint(found, tmp_path)
    tiers = Options(device="cuda", experts=0.5, host_experts=0.75, context=context, dtype="float32")
    with pretend_cuda() as gpu, load(tmp_path, tiers) as engine, torch.inference_mode():
        ids = torch.arange(context - 1, device="cuda").remainder(90)[None] + 5
        if engine.model.config.is_encoder_decoder:
            engine.model(input_ids=ids, decoder_input_ids=ids)
        else:
            engine.model(ids, use_cache=True, logits_to_keep=1)
        assert gpu.memory.peak <= (engine.plan.vram_used or 0) - engine.plan.vram_overhead
