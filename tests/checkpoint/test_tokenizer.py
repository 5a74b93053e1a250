"""Tokenizers out of GGUF files, by the rule that the file names."""

from __future__ import annotations

from pathlib import Path

import pytest

from moe_local.checkpoint.files import Checkpoint
from moe_local.checkpoint.tokenizer import load_tokenizer
from moe_local.testing import architecture
from moe_local.testing.gguf import write_tiny_gguf

TEXT = "the 12345 hens\n\n  and"


def _load(tmp_path: Path, splitting: str) -> tuple[list[str], tuple[str, ...]]:
    file = tmp_path / "model.gguf"
    write_tiny_gguf(architecture("qwen3_moe"), file, "F32", splitting=splitting)
    tokenizer, notes = load_tokenizer(Checkpoint.open(file))
    assert tokenizer is not None
    words = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(TEXT)
    return [word for word, _ in words], notes


@pytest.mark.parametrize(
    ("splitting", "digits"),
    [("gpt-2", ["Ġ12345"]), ("qwen2", ["1", "2", "3", "4", "5"]), ("glm4", ["123", "45"]), ("gpt-4o", ["123", "45"])],
)
def test_numbers_are_split_by_the_rule(splitting: str, digits: list[str], tmp_path: Path) -> None:
    words, notes = _load(tmp_path, splitting)
    assert [word for word in words if any(letter.isdigit() for letter in word)] == digits
    assert notes == ()


def test_an_unknown_rule_is_said(tmp_path: Path) -> None:
    _, notes = _load(tmp_path, "nonesuch")
    assert len(notes) == 1
    assert "'nonesuch'" in notes[0]


def test_none_where_there_is_none(qwen: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(qwen)
    elsewhere = Checkpoint(tmp_path, checkpoint.config, checkpoint.tensors)
    assert load_tokenizer(elsewhere) == (None, ())
