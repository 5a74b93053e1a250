"""Every architecture of transformers that is paged, against its own eager forward pass.

The architectures are discovered from the installed transformers. Each is written in its published layout, loaded with
half of its experts in memory, and then run again with three tiers and with the smallest legal budget.
"""

from __future__ import annotations

import dataclasses
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from torch import Tensor

from moe_local.checkpoint.architecture import experts_modules
from moe_local.engine import Engine, load
from moe_local.errors import MoeLocalError
from moe_local.generation.sampling import Sampling
from moe_local.planning.options import Options
from moe_local.planning.placement import Plan, make_plan
from moe_local.planning.tiers import make_cache
from moe_local.testing import (
    Architecture,
    architectures,
    eager_model,
    tiny_inputs,
    whole_architectures,
    write_tiny_checkpoint,
)
from tests.model.refused import CANNOT

EVERY = (*architectures(), *whole_architectures())

# What transformers itself cannot do, with the release that mended it.
MENDED = {"diffusion_gemma": "5.20", "deepseek_v4": "5.20"}
NEW_TOKENS = 6
PLENTY = 1 << 40


RUN = [found for found in EVERY if found.id not in CANNOT]


@pytest.mark.parametrize("found", RUN, ids=lambda found: found.id)
def test_paged_equals_eager(found: Architecture, tmp_path: Path) -> None:
    write_tiny_checkpoint(found, tmp_path, max_shard_bytes=200_000)
    reference = eager_model(found, tmp_path)
    inputs = tiny_inputs(found)
    wanted = _logits(reference, inputs)
    tokens = _greedy(reference, inputs) if found.can_generate or found.is_encoder_decoder else None
    with load(tmp_path, Options(device="cpu", context=64, experts=0.5)) as engine:
        _expect(engine, inputs, wanted, tokens)
        assert engine.stats()["misses"] > 0
        for plan in _other_plans(engine):
            _replan(engine, plan)
            _expect(engine, inputs, wanted, tokens)
        needs = engine.plan.needs
    if needs.embedding_rows:
        too_little = needs.resident_bytes + needs.all_experts * needs.slot - 1
        with load(tmp_path, Options(device="cpu", context=64, vram=too_little)) as engine:
            assert engine.plan.needs.embedding_rows_on_disk == needs.embedding_rows
            _expect(engine, inputs, wanted, tokens)


def test_nearly_every_architecture_runs() -> None:
    assert len({found.experts_class for found in RUN}) >= 60  # of 5.17, which has fewest


@pytest.mark.parametrize("found", [f for f in EVERY if f.id in CANNOT], ids=lambda found: found.id)
def test_what_cannot_run_is_refused(found: Architecture, tmp_path: Path) -> None:
    _skip_before_mended(found.id)
    write_tiny_checkpoint(found, tmp_path)
    with pytest.raises(MoeLocalError), load(tmp_path, Options(context=64)):
        pass


@pytest.mark.parametrize("found", RUN, ids=lambda found: found.id)
def test_bfloat16_is_within_rounding(found: Architecture, tmp_path: Path) -> None:
    """Experts module by experts module, on the inputs that eager saw: later routers would amplify any rounding."""
    _skip_before_mended(found.id)
    write_tiny_checkpoint(found, tmp_path)
    reference = eager_model(found, tmp_path, torch.bfloat16)
    seen = _watch_experts(reference, found)
    _logits(reference, tiny_inputs(found))
    assert seen
    with load(tmp_path, Options(device="cpu", context=64, experts=0.5, dtype="bfloat16")) as engine:
        for path, arguments, wanted in seen:
            got = _hidden(engine.model.get_submodule(path)(*arguments))
            assert got.dtype == wanted.dtype
            torch.testing.assert_close(got, wanted, rtol=2**-6, atol=2**-6 * wanted.abs().max().item())


def _skip_before_mended(architecture: str) -> None:
    mended = MENDED.get(architecture)
    if mended is not None and Version(transformers.__version__) < Version(mended):
        pytest.skip(f"transformers itself fails, up to {mended}")


def _watch_experts(model: Any, found: Architecture) -> list[tuple[str, tuple[Any, ...], Tensor]]:
    """Fills, at each forward pass, with arguments and result of every experts module, or block with a binding."""
    seen: list[tuple[str, tuple[Any, ...], Tensor]] = []
    blocks = {path: module for path, module in model.named_modules() if isinstance(module, found.experts_class)}
    for path, module in (experts_modules(model) or blocks).items():

        def note(module: Any, arguments: tuple[Any, ...], out: Any, path: str = path) -> None:
            seen.append((path, tuple(map(deepcopy, arguments)), _hidden(out).clone()))

        module.register_forward_hook(note)
    return seen


def _hidden(out: Any) -> Tensor:
    """What a block gives, without its router's logits."""
    hidden: Tensor = out[0] if isinstance(out, tuple) else out
    return hidden


def _logits(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        out = model(**inputs)
    logits: Tensor = out.logits if "logits" in out else out[0]
    return logits


def _greedy(model: Any, inputs: dict[str, Tensor]) -> list[int]:
    out = model.generate(
        inputs["input_ids"], max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    tokens: list[int] = out[0, 1 if model.config.is_encoder_decoder else inputs["input_ids"].shape[1] :].tolist()
    return tokens


def _expect(engine: Engine, inputs: dict[str, Tensor], logits: Tensor, tokens: list[int] | None) -> None:
    torch.testing.assert_close(_logits(engine.model, inputs), logits, rtol=1e-5, atol=1e-5)
    if tokens is not None:
        engine.model.generation_config.eos_token_id = None
        result = engine.generate(inputs["input_ids"][0].tolist(), Sampling(max_new_tokens=NEW_TOKENS, temperature=0))
        assert result.token_ids == tokens


def _other_plans(engine: Engine) -> list[Plan]:
    """Three tiers; the smallest legal budget, which has more room in short passes; the smallest of three tiers."""
    needs = engine.plan.needs
    least = (len(needs.experts) + 1) * needs.slot
    return [
        make_plan(needs, ram=PLENTY, vram=PLENTY, device_share=0.25, host_share=0.5),
        make_plan(needs, ram=needs.resident_bytes + least, elastic=True),
        make_plan(needs, ram=least, vram=needs.resident_bytes + least),
    ]


def _replan(engine: Engine, plan: Plan) -> None:
    """The same loaded model over a cache of another plan."""
    engine.use(make_cache(dataclasses.replace(engine.load_plan, plan=plan), engine.files))
