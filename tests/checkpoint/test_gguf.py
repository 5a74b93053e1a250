"""GGUF files as checkpoints: configuration, names, and headers that are not to be trusted."""

from __future__ import annotations

import builtins
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_local.checkpoint import gguf_header
from moe_local.checkpoint.architecture import load_config
from moe_local.checkpoint.files import Checkpoint
from moe_local.checkpoint.gguf_architectures import KNOWN
from moe_local.checkpoint.gguf_header import read_gguf_header
from moe_local.checkpoint.hub import locate
from moe_local.checkpoint.record import EncodedTensor
from moe_local.checkpoint.schemes import understood
from moe_local.errors import CheckpointError, MoeLocalError, UnsupportedError
from moe_local.testing import architecture, architectures
from moe_local.testing.gguf import NAMES, write_tiny_gguf


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_tiny_gguf(architecture("qwen3_moe"), file, "Q4_0")
    return file


HERE = [found.name for found in architectures() if found.name in NAMES]
# What has no place in a file, and says nothing of the numbers: how text is cut for a kernel, names of other tokens
NOT_TOLD = {
    "chunk_size", "mamba_chunk_size", "first_k_dense_replace", "eod_token_id", "sep_token_id",
    "transformers_version", "dtype", "architectures", "eos_token_id", "num_nextn_predict_layers",
}  # fmt: skip
WITHOUT = {"dots1": {"sliding_window"}, "deepseek_v2": {"n_group", "topk_group"}, "nemotron_h": {"intermediate_size"}}


@pytest.mark.parametrize("name", HERE)
def test_the_configuration_is_the_model_s(name: str, tmp_path: Path) -> None:
    model = write_tiny_gguf(architecture(name), tmp_path / "model.gguf", "Q4_0")
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint.directory == checkpoint.config_file == tmp_path / "model.gguf"
    found, wanted = load_config(checkpoint).to_dict(), model.config.to_dict()
    told = wanted.keys() - NOT_TOLD - WITHOUT.get(name, set()) - {"rope_parameters"}
    assert {key: _part(found.get(key)) for key in told} == {key: _part(wanted[key]) for key in told}
    assert not wanted.get("rope_parameters") or _rotary(found) == _rotary(wanted)
    assert found["architectures"] == [type(model).__name__]


def _part(value: Any) -> Any:
    """A part of a configuration without what it has of the whole."""
    return {k: v for k, v in value.items() if k not in NOT_TOLD} if isinstance(value, dict) else value


def _rotary(config: dict[str, Any]) -> dict[str, Any]:
    """With the defaults of both."""
    given = config.get("rope_parameters") or {}
    defaults = {"beta_fast": 32.0, "beta_slow": 1.0} if given.get("rope_type") == "yarn" else {}
    unused = ("type", "max_position_embeddings")
    return {"partial_rotary_factor": 1.0, **defaults} | {k: v for k, v in given.items() if k not in unused}


def test_the_docs_name_every_architecture() -> None:
    text = (Path(__file__).parents[2] / "docs" / "models.md").read_text().partition("### GGUF")[2].partition(".\n")[0]
    assert re.findall(r"`([^`]+)`", text) == sorted(KNOWN)
    assert f"GGUF of {len(KNOWN)} [architectures]" in (Path(__file__).parents[2] / "docs" / "models.md").read_text()


def test_an_architecture_that_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "other.gguf"
    file.write_bytes(_field(**{"general.architecture": (8, _string("rwkv7"))}))
    with pytest.raises(UnsupportedError, match="architecture 'rwkv7'") as caught:
        Checkpoint.open(file)
    assert all(name in caught.value.remedy for name in KNOWN)
    assert "\n" not in str(caught.value)


def test_tensors_have_their_published_names(tiny: Path) -> None:
    checkpoint = Checkpoint.open(tiny)
    sources = understood(checkpoint)
    expert = sources["model.layers.1.mlp.experts.3.up_proj.weight"]
    assert isinstance(expert, EncodedTensor)
    assert expert.shape == (32, 64)
    assert expert.parts["blocks"].shape == (32, 36)
    assert sources["model.norm.weight"] == checkpoint.tensors["model.norm.weight"]
    assert checkpoint.tensors["model.norm.weight"].dtype == torch.float32
    blocks = read_gguf_header(tiny).tensors["blk.1.ffn_up_exps.weight"]
    assert expert.parts["blocks"].offset == blocks.offset + 3 * 32 * 36


def test_locate_takes_a_file(tiny: Path) -> None:
    assert locate(str(tiny)) == tiny


def test_a_directory_of_several_is_ambiguous(tiny: Path, tmp_path: Path) -> None:
    shutil.copy(tiny, tmp_path / "a.gguf")
    shutil.copy(tiny, tmp_path / "mmproj-a.gguf")  # the part that sees images
    assert Checkpoint.open(tmp_path).directory == tmp_path / "a.gguf"
    shutil.copy(tiny, tmp_path / "b.gguf")
    with pytest.raises(CheckpointError, match=r"2 GGUF models; name one of them, like .*a\.gguf"):
        Checkpoint.open(tmp_path)


def test_safetensors_come_first(qwen: Path, tiny: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(qwen, tmp_path / "both"))
    shutil.copy(tiny, copy / "a.gguf")
    assert Checkpoint.open(copy).gguf is None


def test_a_set_must_be_whole(tmp_path: Path) -> None:
    write_tiny_gguf(architecture("qwen3_moe"), tmp_path / "model.gguf", "Q4_0", parts=3)
    first, second, third = sorted(tmp_path.iterdir())
    shutil.copy(first, tmp_path / "x-00001-of-00002.gguf")
    shutil.copy(second, tmp_path / "x-00002-of-00002.gguf")
    with pytest.raises(CheckpointError, match="is not part 1 of a set of 2"):
        Checkpoint.open(tmp_path / "x-00001-of-00002.gguf")
    third.unlink()
    with pytest.raises(CheckpointError, match=r"model-00003-of-00003\.gguf is missing"):
        Checkpoint.open(first)


def _field(**changes: Any) -> bytes:
    """A GGUF of no tensors with this metadata, values as (type, packed)."""
    body = b"".join(_string(key) + struct.pack("<I", kind) + value for key, (kind, value) in changes.items())
    return struct.pack("<4sIQQ", b"GGUF", 3, 0, len(changes)) + body


def _string(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def _with_tensors(*tensors: tuple[str, tuple[int, ...], int, int], data: int = 4096) -> bytes:
    """A GGUF of no metadata with these tensors: (name, dimensions, type, offset)."""
    body = b"".join(
        _string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
        for name, shape, kind, offset in tensors
    )
    return struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), 0) + body + bytes(data)


F32, Q4_0 = 0, 2
BAD: dict[str, tuple[bytes, type[MoeLocalError], str]] = {
    "empty": (b"", CheckpointError, "is truncated"),
    "short": (b"GGUF\3\0\0\0", CheckpointError, "is truncated"),
    "magic": (b"GGML" + bytes(40), CheckpointError, "is not a GGUF file"),
    "version": (struct.pack("<4sIQQ", b"GGUF", 1, 0, 0), UnsupportedError, "version 1"),
    "big-endian": (struct.pack(">4sIQQ", b"GGUF", 3, 0, 0), UnsupportedError, "big-endian"),
    "no architecture": (_field(), UnsupportedError, "architecture None"),
    "endless metadata": (struct.pack("<4sIQQ", b"GGUF", 3, 0, 1 << 60), CheckpointError, "is truncated"),
    "endless tensors": (struct.pack("<4sIQQ", b"GGUF", 3, 1 << 60, 0), CheckpointError, "is truncated"),
    "endless string": (_field(a=(8, struct.pack("<Q", 1 << 62))), CheckpointError, "is truncated"),
    "endless array": (_field(a=(9, struct.pack("<IQ", 0, 1 << 62))), CheckpointError, "is truncated"),
    "endless strings": (_field(a=(9, struct.pack("<IQ", 8, 1 << 62))), CheckpointError, "is truncated"),
    "nested arrays": (_field(a=(9, struct.pack("<IQ", 9, 1) * 50)), CheckpointError, "unknown type"),
    "unknown value": (_field(a=(77, b"")), CheckpointError, "unknown type 77"),
    "not UTF-8": (_field(a=(8, struct.pack("<Q", 1) + b"\xff")), CheckpointError, "damaged header"),
    "a key twice": (
        struct.pack("<4sIQQ", b"GGUF", 3, 0, 2) + 2 * (_string("a") + struct.pack("<IB", 0, 1)),
        CheckpointError,
        "'a' twice",
    ),
    "alignment": (_field(**{"general.alignment": (4, struct.pack("<I", 3))}), CheckpointError, "alignment of 3"),
    "no dimensions": (_with_tensors(("t", (), F32, 0)), CheckpointError, "0 dimensions"),
    "five dimensions": (_with_tensors(("t", (1,) * 5, F32, 0)), CheckpointError, "5 dimensions"),
    "an empty dimension": (_with_tensors(("t", (0, 4), F32, 0)), CheckpointError, "dimensions (0, 4)"),
    "half a block": (_with_tensors(("t", (48, 4), Q4_0, 0)), CheckpointError, "dimensions (48, 4)"),
    "unknown type": (_with_tensors(("t", (32,), 999, 0)), UnsupportedError, "type 999"),
    "not aligned": (_with_tensors(("t", (4,), F32, 4)), CheckpointError, "not aligned"),
    "beyond the end": (_with_tensors(("t", (32,), F32, 1 << 40)), CheckpointError, "is truncated"),
    "too large": (_with_tensors(("t", (1 << 63, 2, 2, 2), F32, 0)), CheckpointError, "is truncated"),
    "overlap": (_with_tensors(("a", (32,), F32, 0), ("b", (32,), F32, 64)), CheckpointError, "overlaps"),
    "twice": (_with_tensors(("a", (8,), F32, 0), ("a", (8,), F32, 32)), CheckpointError, "two tensors"),
}


@pytest.mark.parametrize(("content", "kind", "said"), BAD.values(), ids=BAD)
def test_bad_headers_are_refused(content: bytes, kind: type[MoeLocalError], said: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.gguf"
    file.write_bytes(content)
    with pytest.raises(kind) as caught:
        Checkpoint.open(file)
    assert said in str(caught.value)
    assert str(file) in str(caught.value)


def test_truncated_anywhere(tiny: Path, tmp_path: Path) -> None:
    content = tiny.read_bytes()
    file = tmp_path / "cut.gguf"
    for length in (*range(0, 400, 7), *range(400, len(content), len(content) // 50), len(content) - 64):
        file.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=r"cut\.gguf is truncated"):
            read_gguf_header(file)


@settings(max_examples=150, deadline=None)
@given(at=st.integers(0, 20_000), value=st.integers(0, 255))
def test_no_byte_of_a_header_is_believed(
    tiny: Path, tmp_path_factory: pytest.TempPathFactory, at: int, value: int
) -> None:
    """A changed byte gives a checkpoint, or an error of ours."""
    content = bytearray(tiny.read_bytes())
    content[at] = value
    file = tmp_path_factory.mktemp("flip") / "flip.gguf"
    file.write_bytes(content)
    try:
        checkpoint = Checkpoint.open(file)
        load_config(checkpoint)
        understood(checkpoint)
    except MoeLocalError:
        pass


def _rewrite(change: Callable[[gguf.GGUFWriter, str], None]) -> Callable[[Path, Path], None]:
    """Writes a file of the header of another, without tensors but those that `change` adds."""

    def write(source: Path, target: Path) -> None:
        reader = gguf.GGUFReader(source)
        writer = gguf.GGUFWriter(target, "qwen3moe")
        for field in reader.fields.values():
            if field.name.startswith("qwen3moe."):
                writer.add_key_value(field.name, field.contents(), field.types[0])
        change(writer, "qwen3moe")
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    return write


def _embedding(writer: gguf.GGUFWriter) -> None:
    writer.add_tensor("token_embd.weight", torch.zeros(4, 64).numpy())


def _strange(writer: gguf.GGUFWriter, name: str) -> None:
    _embedding(writer)
    writer.add_tensor("rope_freqs.weight", torch.zeros(8).numpy())


def _scaled(writer: gguf.GGUFWriter, name: str) -> None:
    _embedding(writer)
    writer.add_string(f"{name}.rope.scaling.type", "longrope")


@pytest.mark.parametrize(
    ("change", "kind", "said"),
    [
        (lambda writer, name: None, CheckpointError, "no token_embd.weight"),
        (_strange, UnsupportedError, "'rope_freqs.weight'"),
        (_scaled, UnsupportedError, "'longrope'"),
    ],
)
def test_what_is_not_understood_is_refused(
    change: Callable[[gguf.GGUFWriter, str], None], kind: type[MoeLocalError], said: str, tiny: Path, tmp_path: Path
) -> None:
    file = tmp_path / "changed.gguf"
    _rewrite(change)(tiny, file)
    with pytest.raises(kind, match=said):
        Checkpoint.open(file)


def test_positions_scaled_as_the_file_says(tiny: Path, tmp_path: Path) -> None:
    def yarn(writer: gguf.GGUFWriter, name: str) -> None:
        _embedding(writer)
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(4.0)
        writer.add_rope_scaling_orig_ctx_len(128)

    file = tmp_path / "yarn.gguf"
    _rewrite(yarn)(tiny, file)
    assert Checkpoint.open(file).config["rope_parameters"] == {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 128,
        "rope_theta": 10000.0,
    }


def test_without_the_package(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name == "gguf":
            raise ImportError(name)
        return real(name, *rest, **more)

    gguf_header.block_sizes.cache_clear()
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UnsupportedError, match=r"moe-local\[gguf\]"):
        Checkpoint.open(tiny)
