"""Every architecture that generates: many at once say what each says alone, whatever caches and positions it has."""

from __future__ import annotations

from pathlib import Path

import pytest

from moe_local.engine import load
from moe_local.generation.batch import Request
from moe_local.generation.sampling import Sampling
from moe_local.planning.options import Options
from moe_local.testing import Architecture, architectures, whole_architectures, write_tiny_checkpoint
from tests.generation.batch.followers import ask, finish

EVERY = [found for found in (*architectures(), *whole_architectures()) if found.can_generate]
REFUSED = {"diffusion_gemma", "qwen3_omni_moe-Qwen3OmniMoeTalkerTextExperts"}
GREEDY = Sampling(max_new_tokens=6, temperature=0)
PROMPTS = [[5 + (i * 37 + n) % 200 for i in range(length)] for n, length in enumerate((3, 19, 7, 7, 12))]


@pytest.mark.parametrize("found", [f for f in EVERY if f.id not in REFUSED], ids=lambda found: found.id)
def test_together_as_alone(found: Architecture, tmp_path: Path) -> None:
    write_tiny_checkpoint(found, tmp_path)
    with load(tmp_path, Options(device="cpu", context=64, experts=0.5, max_sequences=3)) as engine:
        engine.model.generation_config.eos_token_id = None
        alone = [engine.generate(prompt, GREEDY).token_ids for prompt in PROMPTS]
        answers = list(engine.batch(Request(prompt, GREEDY, tag=n) for n, prompt in enumerate(PROMPTS)))
        together = {answer.request.tag: list(answer.token_ids) for answer in answers}
        assert [together[n] for n in range(len(PROMPTS))] == alone
        assert all(answer.error is None for answer in answers)


@pytest.mark.parametrize("found", [f for f in EVERY if f.id not in REFUSED], ids=lambda found: found.id)
def test_one_by_one_as_alone_and_going_on_from_what_was_computed(found: Architecture, tmp_path: Path) -> None:
    write_tiny_checkpoint(found, tmp_path)
    options = Options(device="cpu", context=128, experts=0.5, max_sequences=3, tokens_per_sequence=128)
    with load(tmp_path, options) as engine:
        engine.model.generation_config.eos_token_id = None
        batch = engine.live_batch()
        first = [5 + i * 37 % 200 for i in range(40)]
        begun = ask(engine, batch, Request(first, GREEDY), first)
        batch.step()
        beside = ask(engine, batch, Request(PROMPTS[1], GREEDY), PROMPTS[1])
        finish(batch)
        following = first + begun.ids + PROMPTS[2]
        then = [ask(engine, batch, Request(ids, GREEDY), ids) for ids in (following, first[:30] + PROMPTS[4])]
        finish(batch)
        for memory, ids in ((begun, first), (beside, PROMPTS[1]), (then[0], following)):
            assert memory.ids == engine.generate(ids, GREEDY).token_ids
        assert then[1].ids == engine.generate(first[:30] + PROMPTS[4], GREEDY).token_ids
        assert then[0].cached == (len(first) + len(begun.ids) - 1 if batch.turns.places > 1 else 0)
        assert then[1].cached in (0, 30)
