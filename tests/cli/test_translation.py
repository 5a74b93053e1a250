"""Models that make one text of another, at the command line: `generate` runs them, and the others say why not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from moe_local.testing import architecture, write_tiny_checkpoint

from .conftest import Run, expect_error

QUICK = ("-n", "6", "--temperature", "0", "--context", "64")


@pytest.fixture(scope="module")
def switch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(architecture("switch_transformers"), tmp_path_factory.mktemp("models") / "switch")


@pytest.fixture(scope="module")
def nllb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = write_tiny_checkpoint(architecture("nllb_moe"), tmp_path_factory.mktemp("models") / "nllb")
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.add_tokens(["eng_Latn", "fra_Latn"], special_tokens=True)
    tokenizer.save_pretrained(directory)
    return directory


def test_switch_generates(run: Run, switch: Path) -> None:
    plain = run("generate", switch, "-p", "the hen", "--no-pack", *QUICK)
    assert plain.exit_code == 0, plain.output
    packed = run("generate", switch, "-p", "the hen", "--json", *QUICK)  # on first use
    assert packed.exit_code == 0, packed.output
    assert json.loads(packed.stdout)["new_tokens"] == 6


def test_nllb_translates(run: Run, nllb: Path) -> None:
    languages = ("--source", "eng_Latn", "--target", "fra_Latn")
    result = run("generate", nllb, "-p", "the hen", *languages, "--json", *QUICK)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["prompt_tokens"] > 2
    expect_error(run("generate", nllb, "-p", "the hen", *QUICK), "--target")
    languages = ("--source", "eng_Latn", "--target", "fr_Latn")
    expect_error(run("generate", nllb, "-p", "the hen", *languages, *QUICK), "did you mean fra_Latn")


def test_the_others_refuse_before_they_pack(run: Run, switch: Path, tmp_path: Path) -> None:
    text = tmp_path / "prompts.txt"
    text.write_text("hello\n" * 40)
    said = "is an encoder-decoder"
    expect_error(run("chat", switch, stdin="hello"), said)
    expect_error(run("batch", text, "-m", switch, "-o", tmp_path / "answers.jsonl"), said)
    expect_error(run("eval", switch, "-f", text, "--window", "16"), said)
    assert not list((tmp_path / "home").glob("stores/*"))


def test_bench_says_what_it_cannot_measure(run: Run, switch: Path) -> None:
    result = run("bench", switch, "--no-pack", "--new-tokens", "4", "--repeat", "1")
    expect_error(result, "different tokens of one forward pass")
