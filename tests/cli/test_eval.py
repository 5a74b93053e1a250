"""`moe-local eval`."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from moe_local.kernels import native
from moe_local.testing import architecture, write_tiny_checkpoint
from tests.processes import read_until

from .conftest import Run, expect_error

TEXT = "the cat and the hen sat on a wall, and then the rain ran over the sand. " * 6


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text(TEXT, encoding="utf-8")
    return file


def test_the_figures(run: Run, qwen: Path, text: Path) -> None:
    result = run("eval", qwen, "--text", text, "--window", "64", "--context", "128", "--experts", "50%", "--no-pack")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("perplexity ")
    assert "windows of 64, stride 32" in result.stdout
    assert "fp32" in result.stdout


def test_json(run: Run, qwen: Path, text: Path) -> None:
    result = run(
        "eval", qwen, "--text", text, "--limit", "100", "--json", "--window", "64", "--stride", "16", "--no-pack"
    )
    assert result.exit_code == 0, result.output
    out = json.loads(result.stdout)
    assert out["tokens"] == 99
    assert (out["window"], out["stride"], out["windows"]) == (64, 16, 4)
    assert out["expert_format"] == "fp32"
    assert out["perplexity"] > 1
    assert out["tokens_per_second"] > 0
    assert "kl_divergence" not in out


def test_it_measures_what_chat_runs(run: Run, qwen: Path, text: Path) -> None:
    """The packed model, unless told otherwise."""
    short = ("-f", text, "--limit", "50", "--json")
    packed, original = (json.loads(run("eval", qwen, *short, *extra).stdout) for extra in ((), ("--no-pack",)))
    assert packed["expert_format"].startswith("int4")
    assert (original["expert_format"], original["perplexity"] != packed["perplexity"]) == ("fp32", True)


def test_defaults(run: Run, qwen: Path, text: Path) -> None:
    out = json.loads(run("eval", qwen, "--text", text, "--json", "--context", "100").stdout)
    assert (out["window"], out["stride"]) == (100, 50)
    out = json.loads(run("eval", qwen, "--text", text, "--json").stdout)
    assert (out["window"], out["stride"]) == (512, 256)


def test_against(run: Run, qwen: Path, text: Path, tmp_path: Path) -> None:
    other = write_tiny_checkpoint(architecture("qwen3_moe"), tmp_path / "other", seed=1)
    result = run("eval", qwen, "--against", other, "--text", text, "--json", "--limit", "100")
    assert result.exit_code == 0, result.output
    out = json.loads(result.stdout)
    alone = json.loads(run("eval", other, "--text", text, "--json", "--limit", "100", "--no-pack").stdout)
    assert out["kl_divergence"] > 0.1
    assert 0 <= out["top1_agreement"] < 1
    assert out["reference_perplexity"] == alone["perplexity"] != out["perplexity"]
    assert "predictions take" in result.stderr
    assert "KL divergence" in run("eval", qwen, "--against", qwen, "--text", text, "--limit", "50").stdout


@pytest.mark.skipif(native.missing() is not None, reason="only the native kernels round activations")
def test_what_rounding_activations_costs(run: Run, text: Path, tmp_path: Path) -> None:
    """The reference's are not rounded."""
    source = write_tiny_checkpoint(architecture("qwen3_moe"), tmp_path / "source", dtype=torch.bfloat16)
    store = tmp_path / "store"
    assert run("pack", source, "-o", store, "--format", "int8").exit_code == 0
    command = ("eval", store, "--against", store, "--text", text, "--limit", "100", "--json")
    rounded = json.loads(run(*command).stdout)["kl_divergence"]
    exact = json.loads(run(*command, "--activations", "bf16").stdout)["kl_divergence"]
    assert 1e-9 < rounded < 1e-2
    assert abs(exact) < 1e-12


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--limit", "1"), "--limit 1"),
        (("--window", "1"), "--window 1"),
        (("--window", "100000"), "--window 100000"),
        (("--window", "64", "--stride", "64"), "--stride 64"),
        (("--stride", "0"), "--stride 0"),
        (("--ram", "10MB"), "--ram"),
    ],
)
def test_bad_options(run: Run, qwen: Path, text: Path, arguments: tuple[str, ...], said: str) -> None:
    expect_error(run("eval", qwen, "--text", text, *arguments), said)


@pytest.mark.parametrize(
    ("content", "said"), [(b"", "is empty"), (b"caf\xe9", "is not UTF-8 (byte 3)"), (b"a", "too short")]
)
def test_texts_that_cannot_be_scored(run: Run, qwen: Path, tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "bad.txt"
    file.write_bytes(content)
    expect_error(run("eval", qwen, "--text", file), said, code=1)
    expect_error(run("eval", qwen, "--text", tmp_path / "absent"), "cannot read", code=1)


def test_a_text_is_needed(run: Run, qwen: Path) -> None:
    assert run("eval", qwen).exit_code == 2


def test_models_of_two_families(run: Run, qwen: Path, text: Path, tmp_path: Path) -> None:
    other = write_tiny_checkpoint(architecture("qwen3_moe"), tmp_path / "other", seed=1)
    file = other / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["x"], vocabulary["y"] = vocabulary["y"], vocabulary["x"]
    file.write_text(json.dumps(tokenizer))
    result = run("eval", qwen, "--against", other, "--text", text)
    assert result.exit_code == 1
    assert "'x' has two numbers" in result.stderr


def test_ctrl_c(process: Callable[..., subprocess.Popen[str]], qwen: Path, tmp_path: Path) -> None:
    file = tmp_path / "long.txt"
    file.write_text(TEXT * 200)
    started = process("eval", qwen, "--against", qwen, "--text", file, "--stride", "1")
    assert started.stderr is not None
    read_until(started.stderr, "predictions take")
    started.send_signal(signal.SIGINT)
    out, err = started.communicate(timeout=60)
    assert (out, err) == ("", "error: interrupted\n")
    assert started.returncode == 130
