"""Packing what is quantised already: the very same integers where they fit, else the nearest format."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from moe_local.checkpoint.encoding import Encoding
from moe_local.engine import load
from moe_local.formats.registry import nearest, packed_encoding
from moe_local.planning.options import Options
from moe_local.store import first_use, open_store, pack, verify
from moe_local.store.job import relative_error
from moe_local.store.manifest import Manifest
from moe_local.testing.quantised import assert_runs_as, rewrite_checkpoint
from tests.checkpoint.schemes.test_gptq import Writer

INT4 = packed_encoding("int4", 64)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (Encoding("bf16"), INT4),
        (Encoding("gptq", (("bits", 4), ("group", 128))), packed_encoding("int4", 128)),
        (Encoding("gptq", (("bits", 8), ("group", 128))), Encoding("int8")),
        (Encoding("awq", (("group", 32),)), packed_encoding("int4", 32)),
        (Encoding("awq", (("group", 256),)), INT4),
        (Encoding("signed-int8", (("group", 0),)), Encoding("int8")),
        (Encoding("mxfp4"), Encoding("mxfp4")),
        (Encoding("nvfp4"), Encoding("nvfp4")),
        (Encoding("nvfp4", (("divides", 1),)), Encoding("nvfp4", (("divides", 1),))),
        (Encoding("mlx", (("bits", 4), ("group", 64))), INT4),
        (Encoding("mlx", (("bits", 6), ("group", 64))), Encoding("int8")),
        (Encoding("nf4", (("block", 64),)), Encoding("nf4", (("block", 64),))),
        (Encoding("nf4", (("block", 64), ("nested", 256))), INT4),
        (Encoding("gguf", (("type", "Q4_K"),)), packed_encoding("int4", 32)),
        (Encoding("gguf", (("type", "Q6_K"),)), Encoding("int8")),
    ],
)
def test_nearest(given: Encoding, wanted: Encoding) -> None:
    assert nearest(given, INT4) == wanted


def test_a_gguf_file_packs(tmp_path: Path) -> None:
    """Tokenizer included: the store needs the file no more."""
    pytest.importorskip("gguf")
    from moe_local.testing import architecture
    from moe_local.testing.gguf import write_tiny_gguf

    file = tmp_path / "model.gguf"
    write_tiny_gguf(architecture("qwen3_moe"), file, "Q8_0")
    job = first_use.plan(file, first_use.choose())
    assert job.expert_formats == "int8"
    assert relative_error(job) < 0.01
    store = pack(job, tmp_path / "store")
    assert verify(store) == []
    inputs = torch.arange(5, 17)[None]
    with load(file, Options(context=64)) as engine, torch.no_grad():
        wanted = engine.model(inputs).logits
        ids = engine.encode("hello there", raw=True)
    file.unlink()
    with load(store, Options(context=64)) as engine, torch.no_grad():
        got = engine.model(inputs).logits
        assert engine.encode("hello there", raw=True) == ids
    assert (got - wanted).abs().median() < 0.03 * wanted.abs().max()  # some tokens go to another expert


@pytest.mark.parametrize(("by_activation", "lossless"), [(False, True), (True, False)])
def test_four_bit_integers_are_kept(
    by_activation: bool, lossless: bool, qwen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GPTQ: the same codes, scales rounded to bf16. In the order of activation they cannot be kept."""
    monkeypatch.setenv("MOE_LOCAL_HOME", str(tmp_path / "home"))
    writer = Writer(group_size=32, desc_act=by_activation)
    source = rewrite_checkpoint(qwen, tmp_path / "gptq", lambda n, t: writer.quantise(n, t) or {n: t}, writer.config)
    job = first_use.plan(source, first_use.choose())
    assert job.expert_formats == "int4-g32"
    assert (relative_error(job) < 0.004) == lossless
    files, taken = first_use.ensure_packed(source, lambda stage, fraction: None)
    made = files.checkpoint.directory
    assert (taken is first_use.Taken.PACKED, made == source) == (lossless, not lossless)
    if lossless:
        kept = {m.path.rpartition(".")[2] for m in open_store(made).manifest.matrices if m.encoding.format == "int4"}
        assert kept >= {"q_proj", "o_proj"}


def test_biases_in_another_order_are_packed_in_the_models(tmp_path: Path) -> None:
    """llama.cpp keeps gpt-oss's gate and up apart, and transformers interleaves them."""
    pytest.importorskip("gguf")
    from moe_local.testing import architecture
    from moe_local.testing.gguf import write_tiny_gguf

    file = tmp_path / "model.gguf"
    write_tiny_gguf(architecture("gpt_oss"), file, "F16")
    store = pack(first_use.plan(file, first_use.choose("fp32", 32, "keep")), tmp_path / "store")
    inputs = torch.arange(5, 17)[None]
    logits = []
    for path in (file, store):
        with load(path, Options(context=64, dtype="float32")) as engine, torch.no_grad():
            logits.append(engine.model(inputs).logits)
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-4, atol=1e-4)


def test_experts_of_different_layouts_pack(qwen: Path, tmp_path: Path) -> None:
    """The first four in 8 bits, of which the third has a projection left alone that int4 cannot hold."""

    def changes(name: str) -> dict[str, object] | None:
        if ".experts.2.down_proj" in name:
            return None
        return {"bits": 8} if re.search(r"\.experts\.[0-3]\.", name) else {}

    dynamic = {r"-:.*\.experts\.2\.down_proj": {}, r"+:.*\.experts\.[0-3]\.": {"bits": 8}}
    writer = Writer(group_size=32, dynamic=dynamic, changes=changes)
    quantised = rewrite_checkpoint(qwen, tmp_path / "q", lambda n, t: writer.quantise(n, t) or {n: t}, writer.config)
    plain = rewrite_checkpoint(qwen, tmp_path / "p", lambda n, t: {n: writer.meant(n, t)}, None)
    assert_runs_as("qwen3_moe", quantised, plain)

    job = first_use.plan(quantised, first_use.choose())
    assert [len({id(layout) for layout in layouts}) for layouts in job.layouts] == [2] * len(job.layouts)
    assert set(job.expert_formats.split(" and ")) == {"int8", "int4-g32"}
    assert relative_error(job) < 0.03
    store = pack(job, tmp_path / "store")
    assert verify(store) == []
    stored = open_store(store).manifest.layers
    assert [[layout.size for layout in layer.layouts] for layer in stored] == [
        [layout.size for layout in layouts] for layouts in job.layouts
    ]
    assert Manifest.read(store).layers == stored
    inputs = torch.arange(5, 17)[None]
    with load(store, Options(context=64, experts=0.5)) as half, load(store, Options(context=64)) as whole:
        assert torch.equal(half.model(inputs).logits, whole.model(inputs).logits)
        with load(quantised, Options(context=64)) as original:
            change = half.model(inputs).logits - original.model(inputs).logits
            assert change.norm() < 0.1 * original.model(inputs).logits.norm()
