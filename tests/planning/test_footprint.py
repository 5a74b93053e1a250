"""What forward passes take, where transformers holds all attention scores of a pass at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from moe_local.planning.options import Options
from moe_local.planning.plan_load import plan_load
from moe_local.testing import architecture, write_tiny_checkpoint
from moe_local.units import MIB

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


@pytest.mark.parametrize(("heads", "context", "wanted"), [(64, 1024, 1024), (64, 4096, 256), (64, 1 << 15, 32)])
def test_a_long_context_goes_in_smaller_chunks(
    heads: int, context: int, wanted: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    eager = write_tiny_checkpoint(architecture("gpt_oss"), tmp_path)
    _positions(eager)
    monkeypatch.setattr("moe_local.planning.footprint._eager_heads", lambda model: heads)
    found = plan_load(eager, Options(device="cpu", context=context, dtype="bfloat16"))
    assert found.prefill_chunk == wanted
    assert wanted == 32 or wanted * context * heads * 16 <= GIB


def _positions(checkpoint: Path) -> None:
    """Gives a model as many as large ones have."""
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 1 << 15}))


def test_passes_are_as_long_as_memory_allows(tmp_path: Path) -> None:
    qwen = write_tiny_checkpoint(architecture("qwen3_moe"), tmp_path)
    _positions(qwen)
    small = {"device": "cpu", "context": 3000, "dtype": "bfloat16"}
    roomy = plan_load(qwen, Options(**small))  # type: ignore[arg-type]
    assert roomy.prefill_chunk == 4096 and not roomy.plan.needs.longer
    needs, overhead = roomy.plan.needs, roomy.plan.ram_overhead
    least = overhead + needs.with_short_passes().resident_bytes + 8 * MIB
    chunks = [plan_load(qwen, Options(ram=least + n * 16 * MIB, **small)).prefill_chunk for n in range(40)]  # type: ignore[arg-type]
    assert chunks == sorted(chunks) and {1024, 2048, 4096} <= set(chunks)
