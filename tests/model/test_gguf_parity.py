"""GGUF files, loaded, against transformers' eager forward pass on the very numbers that they hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from transformers import AutoModelForCausalLM

from moe_local import Options, Sampling
from moe_local.checkpoint.gguf_architectures import KNOWN
from moe_local.checkpoint.gguf_header import block_sizes
from moe_local.engine import load
from moe_local.store import first_use, pack
from moe_local.testing import architecture, architectures, tiny_inputs, write_tiny_checkpoint
from moe_local.testing.gguf import ALIKE, NAMES, write_tiny_gguf
from moe_local.testing.tokenizer import EOS_ID, tiny_tokenizer

OPTIONS = Options(device="cpu", context=64, experts=0.5, dtype="float32")
PLAIN = {"F32": "fp32", "F16": "fp16", "BF16": "bf16"}
HERE = {found.name for found in architectures()}  # an older transformers lacks some
SOME = ("F32", "Q8_0", "Q4_K")
ALL = [name for name, _, _ in block_sizes().values()]

needs_tokenizer = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.18"),
    reason="transformers makes tokenizers of these GGUF files from 5.18 on",
)


def test_every_architecture_has_a_tiny_file() -> None:
    assert KNOWN.keys() == {*NAMES.values(), *ALIKE.values(), "qwen3vlmoe"}
    assert len(KNOWN) >= 25


def _cases() -> list[Any]:
    some = [(name, kind) for name in (*NAMES, *ALIKE) for kind in SOME]
    every = [(name, kind) for name in ("qwen3_moe", "deepseek_v2", "qwen3_5_moe") for kind in ALL]
    missing = pytest.mark.skip(reason="this transformers does not have it")
    return [
        pytest.param(*case, id="-".join(case), marks=() if case[0] in HERE else missing)
        for case in dict.fromkeys(some + every)
    ]


@pytest.mark.parametrize(("name", "kind"), _cases())
def test_logits(name: str, kind: str, tmp_path: Path) -> None:
    reference = write_tiny_gguf(architecture(name), tmp_path / "model.gguf", kind)
    ids = tiny_inputs(architecture(name))["input_ids"]
    with torch.no_grad():
        wanted = reference(ids).logits
    with load(tmp_path / "model.gguf", OPTIONS) as engine, torch.no_grad():
        torch.testing.assert_close(engine.model(ids).logits, wanted, rtol=1e-4, atol=5e-5)
        formats = [str(encoding) for encoding in engine.load_plan.catalog.layers[0].kinds[0].encodings]
        assert formats == [PLAIN.get(kind, f"gguf-{kind}")]
        assert engine.stats()["misses"] > 0


@pytest.mark.parametrize("name", [name for name in NAMES if name in HERE])
def test_packed_without_loss(name: str, tmp_path: Path) -> None:
    """What was undone of the dense part is kept in the store as the model has it."""
    reference = write_tiny_gguf(architecture(name), tmp_path / "model.gguf", "F32")
    ids = tiny_inputs(architecture(name))["input_ids"]
    store = pack(first_use.plan(tmp_path / "model.gguf", first_use.choose("fp32", dense="keep")), tmp_path / "store")
    with load(store, OPTIONS) as engine, torch.no_grad():
        torch.testing.assert_close(engine.model(ids).logits, reference(ids).logits, rtol=1e-4, atol=5e-5)


@pytest.mark.parametrize("name", ["qwen2_moe", "qwen3_moe"])
def test_transformers_reads_the_same_from_the_file(name: str, tmp_path: Path) -> None:
    """Its own reader knows these two, once it is told the configuration."""
    reference = write_tiny_gguf(architecture(name), tmp_path / "model.gguf", "Q8_0")
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="model.gguf", config=reference.config, dtype=torch.float32
    )
    ids = tiny_inputs(architecture(name))["input_ids"]
    with load(tmp_path / "model.gguf", OPTIONS) as engine, torch.no_grad():
        torch.testing.assert_close(engine.model(ids).logits, theirs(ids).logits, rtol=1e-5, atol=1e-5)


def test_experts_of_gate_and_up_in_one_tensor(tmp_path: Path) -> None:
    reference = write_tiny_gguf(architecture("qwen3_moe"), tmp_path / "model.gguf", "Q4_0", fused=True)
    ids = tiny_inputs(architecture("qwen3_moe"))["input_ids"]
    with load(tmp_path / "model.gguf", OPTIONS) as engine, torch.no_grad():
        torch.testing.assert_close(engine.model(ids).logits, reference(ids).logits, rtol=1e-5, atol=1e-5)


def test_a_set_of_files(tmp_path: Path) -> None:
    reference = write_tiny_gguf(architecture("qwen3_moe"), tmp_path / "model.gguf", "Q8_0", parts=3)
    assert sorted(file.name for file in tmp_path.iterdir()) == [f"model-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    ids = tiny_inputs(architecture("qwen3_moe"))["input_ids"]
    for named in (tmp_path, tmp_path / "model-00001-of-00003.gguf", tmp_path / "model-00003-of-00003.gguf"):
        with load(named, OPTIONS) as engine, torch.no_grad():
            torch.testing.assert_close(engine.model(ids).logits, reference(ids).logits, rtol=1e-5, atol=1e-5)


@needs_tokenizer
def test_text_as_from_the_checkpoint_that_it_was_made_of(tmp_path: Path) -> None:
    """The tokenizer, its chat template and its end token come out of the file."""
    original = write_tiny_checkpoint(architecture("qwen3_moe"), tmp_path / "original")
    reference = write_tiny_gguf(architecture("qwen3_moe"), tmp_path / "gguf" / "model.gguf", "Q4_0")
    texts = ("hello", " the  rain\n\nand\tsand <|user|> x", "Ünïcödé 漢字 🙂", "")
    with load(tmp_path / "gguf", OPTIONS) as engine, load(original, OPTIONS) as other:
        for text in texts:
            assert engine.encode(text, raw=True) == other.encode(text, raw=True)
            assert engine.encode(text, system="Be brief.") == other.encode(text, system="Be brief.")
        assert engine.generator.tokenizer.decode([EOS_ID]) == tiny_tokenizer().eos_token
        assert engine.model.generation_config.eos_token_id in (EOS_ID, [EOS_ID])
        greedy = Sampling(max_new_tokens=8, temperature=0)
        engine.model.generation_config.eos_token_id = None
        ids = engine.encode("hello")
        wanted = reference.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False, eos_token_id=None)
        assert engine.generate("hello", greedy).token_ids == wanted[0, len(ids) :].tolist()


def test_runs_in_bfloat16_unless_told_otherwise(tmp_path: Path) -> None:
    for kind, dtype in (("Q4_0", torch.bfloat16), ("F16", torch.float16), ("F32", torch.float32)):
        write_tiny_gguf(architecture("qwen3_moe"), tmp_path / f"{kind}.gguf", kind)
        with load(tmp_path / f"{kind}.gguf", Options(device="cpu", context=64)) as engine:
            assert engine.load_plan.dtype == dtype
