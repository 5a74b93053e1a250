"""What forward passes take, where transformers holds all attention scores of a pass at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from moe_local.planning.footprint import prefill_chunk
from moe_local.planning.formulas import PREFILL_CHUNK
from moe_local.planning.options import Options
from moe_local.planning.plan_load import plan_load
from moe_local.testing import architecture, tiny_model, write_tiny_checkpoint

GIB = 1 << 30


def test_scores_of_eager_attention_are_planned(tmp_path: Path, qwen: Path) -> None:
    """gpt-oss: every head's scores of a chunk over the whole context, a few times; not in sdpa's blocks."""
    eager = write_tiny_checkpoint(architecture("gpt_oss"), tmp_path / "eager")
    for model, counted in ((eager, True), (qwen, False)):
        short, long = (
            plan_load(model, Options(device="cpu", context=n, dtype="bfloat16")).plan.needs for n in (256, 512)
        )
        heads = 4
        scores = 16 * heads * (512 * 512 - 256 * 256)
        assert (long.workspace - short.workspace > scores) == counted


@pytest.mark.parametrize(("heads", "context", "wanted"), [(64, 1024, 512), (64, 4096, 256), (64, 1 << 15, 32)])
def test_a_long_context_goes_in_smaller_chunks(heads: int, context: int, wanted: int) -> None:
    model = tiny_model(architecture("gpt_oss"))
    model.config.num_attention_heads = heads
    assert prefill_chunk(model, context, torch.bfloat16) == wanted
    assert wanted == 32 or wanted * context * heads * 16 <= GIB


def test_others_go_in_the_usual_ones(qwen: Path) -> None:
    assert prefill_chunk(tiny_model(architecture("qwen3_moe")), 1 << 17, torch.float32) == PREFILL_CHUNK
