"""A report as Markdown: its tables, and nothing of what it names as markup."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from moe_local.bench.markdown import markdown
from moe_local.bench.report import head
from moe_local.bench.workload import OWN, prompts_hash


def _report(name: str) -> dict[str, Any]:
    spread = {"median": 12.5, "low": 12.0, "high": 13.0}
    model = {"name": name, "layers": 2, "experts": [4, 4], "top_k": 2, "format": "int4", "record_bytes": 4096}
    run = {"config": {"policy": "lru"}, "summary": {"decode_tokens_per_second": spread}}
    return {**head("live", "1.0"), "model": model, "runs": [run]}


def test_tables_are_whole() -> None:
    text = markdown(_report("tiny"))
    lines = text.splitlines()
    assert lines[0] == "# moe-local bench: tiny"
    at = lines.index("## Speed and hits")
    table = [line for line in lines[at:] if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1
    assert any(line.startswith("| decode, tokens/s | 12.5 (12.0 to 13.0)") for line in table)
    assert any(line.startswith("- versions: python 3") and "torch" in line for line in lines)


@given(st.text(max_size=60))
def test_a_name_is_no_markup(name: str) -> None:
    heading, *rest = markdown(_report(name)).splitlines()
    assert heading.startswith("# ") and rest[0] == ""
    bare = heading
    for character in "\\`*_[]<>|":
        bare = bare.replace(f"\\{character}", "")
    assert not set(bare) & set("`*_[]<>|")


def test_prompts_have_a_hash_by_text_and_order() -> None:
    assert prompts_hash(OWN) == prompts_hash(list(OWN)) != prompts_hash(OWN[::-1])
    assert len(prompts_hash(OWN)) == 16
