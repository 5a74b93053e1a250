"""docs/architectures.md is made from the code: by `python -m docs.make_architectures`."""

from __future__ import annotations

import re

import transformers

from docs.make_architectures import PAGE, lines


def test_the_page_says_what_is_run() -> None:
    """Of what the installed transformers has: another release has more, or fewer."""
    text = PAGE.read_text(encoding="utf-8")
    told = {line.split("`")[3]: line for line in text.splitlines() if line.startswith("| `")}
    made = lines()
    common = told.keys() & made.keys()
    assert len(common) > 40
    assert {name: told[name] for name in common} == {name: made[name] for name in common}
    if re.search(rf"transformers {re.escape(transformers.__version__)} has", text):
        assert told.keys() == made.keys()


def test_bound_and_refused_are_told() -> None:
    found = lines()
    assert found["DbrxForCausalLM"].endswith("text; bound by us |")
    assert "one text of another" in found["NllbMoeForConditionalGeneration"]
    assert "refused: " in found["DiffusionGemmaForBlockDiffusion"]
    assert "`deepseek2`" in found["DeepseekV3ForCausalLM"]
    assert "`qwen3moe`" in found["Qwen3MoeForCausalLM"]
