"""Commands on a GGUF file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from moe_local.testing import architecture
from moe_local.testing.gguf import write_tiny_gguf

from .conftest import Run, expect_error

pytest.importorskip("transformers.integrations.gguf.gguf_tokenizer_mapping", reason="an older transformers")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("gguf") / "tiny-Q4_0.gguf"
    write_tiny_gguf(architecture("qwen3_moe"), file, "Q4_0")
    return file


def test_inspect(run: Run, model: Path) -> None:
    out = json.loads(run("inspect", model, "--json").stdout)
    assert out["model"] == str(model)
    assert out["architecture"] == "Qwen3MoeForCausalLM"
    assert out["expert_format"] == "gguf-Q4_0"
    assert out["record_bytes"] == 3 * 64 * 32 * 18 // 32


def test_generate_and_chat(run: Run, model: Path) -> None:
    short = ("--context", "128", "-n", "4", "--temperature", "0", "--experts", "50%")
    for named in (model, model.parent):
        result = run("generate", named, "-p", "hello", "--json", *short)
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["new_tokens"] == 4
    result = run("chat", model, *short, stdin="hello\nagain\n")
    assert result.exit_code == 0, result.output


def test_eval_against_other_weights(run: Run, model: Path, tmp_path: Path) -> None:
    """One seed, so one model: 8-bit weights are nearer to the original than 4-bit ones."""
    text = tmp_path / "text.txt"
    text.write_text("the cat and the hen sat on a wall, and then the rain ran over the sand. " * 3)
    write_tiny_gguf(architecture("qwen3_moe"), tmp_path / "original.gguf", "F32")
    write_tiny_gguf(architecture("qwen3_moe"), tmp_path / "better.gguf", "Q8_0")
    figures = [
        json.loads(
            run("eval", file, "--against", tmp_path / "original.gguf", "--text", text, "--json", "--no-pack").stdout
        )
        for file in (model, tmp_path / "better.gguf")
    ]
    assert [figure["expert_format"] for figure in figures] == ["gguf-Q4_0", "gguf-Q8_0"]
    assert figures[0]["kl_divergence"] > 10 * figures[1]["kl_divergence"] > 0
    assert figures[0]["top1_agreement"] <= figures[1]["top1_agreement"] <= 1


def test_damaged(run: Run, model: Path, tmp_path: Path) -> None:
    file = tmp_path / "cut.gguf"
    file.write_bytes(model.read_bytes()[:-100])
    expect_error(run("generate", file, "-p", "x"), f"{file} is truncated", code=3)
    other = tmp_path / "notes.txt"
    other.write_text("x")
    expect_error(run("generate", other, "-p", "x"), "or a GGUF file", code=3)
