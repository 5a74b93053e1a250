"""What somebody else made is read only if it is a file, and no more of it than such files have."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from moe_local.checkpoint import json_file
from moe_local.checkpoint.files import Checkpoint
from moe_local.checkpoint.json_file import parse_json, read_json
from moe_local.checkpoint.regular import assert_regular, read_regular
from moe_local.errors import CheckpointError, MoeLocalError
from moe_local.planning.plan_load import plan_load
from moe_local.testing import architecture, write_tiny_checkpoint

needs_pipes = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")


def _directory(path: Path) -> None:
    path.mkdir()


KINDS: dict[str, Callable[[Path], object]] = {
    "a pipe": lambda path: os.mkfifo(path),
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a directory": _directory,
}


@needs_pipes
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json", "model-00001-of-00002.safetensors"])
def test_only_files_are_read(kind: str, name: str, qwen: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(qwen, tmp_path / "model"))
    name = name if (copy / name).exists() else min(copy.glob("model-*.safetensors")).name
    (copy / name).unlink()
    KINDS[kind](copy / name)
    with pytest.raises(CheckpointError, match=name):
        Checkpoint.open(copy)


@needs_pipes
@pytest.mark.parametrize("kind", KINDS)
def test_a_bare_file(kind: str, tmp_path: Path) -> None:
    KINDS[kind](tmp_path / "x")
    with pytest.raises((CheckpointError, OSError), match="x"):
        read_regular(tmp_path / "x", 100)
    with pytest.raises(CheckpointError, match="not a regular file"):
        assert_regular(tmp_path / "x", 100)


def test_sizes(tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_bytes(b"1234")
    assert read_regular(file, 4) == b"1234"
    assert_regular(file, 4)
    for check in (read_regular, assert_regular):
        with pytest.raises(CheckpointError, match="more than"):
            check(file, 3)
    assert_regular(tmp_path / "absent", 1)


@pytest.mark.parametrize(
    "text", ["[" * 3_000_000, '{"a":1},' * 2_500_000, "1," * 7_000_000], ids=["lists", "pairs", "items"]
)
def test_json_of_more_parts_than_any_real_one(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(CheckpointError, match="more than"):
        read_json(tmp_path / "a.json")


def test_json_that_is_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_file, "MOST", 10)
    (tmp_path / "a.json").write_text('{"a": "longer"}')
    with pytest.raises(CheckpointError, match=r"a\.json has more than"):
        read_json(tmp_path / "a.json")


def test_nested_json_is_refused() -> None:
    with pytest.raises(ValueError, match="deeply"):
        parse_json(b"[" * 100_000 + b"]" * 100_000)


ODD: list[tuple[str, object]] = [
    *(("architectures", value) for value in (5, [[]], [False], "Qwen3MoeForCausalLM", {"a": 1})),
    *((name, 0) for name in ("head_dim", "num_attention_heads", "num_key_value_heads", "vocab_size")),
    *((name, -4) for name in ("head_dim", "hidden_size", "num_experts", "num_hidden_layers")),
    ("model_type", []),
    ("hidden_size", "64"),
    ("num_experts_per_tok", 99),
    ("rope_theta", "x"),
    ("rope_scaling", 5),
    ("layer_types", 7),
    ("dtype", "float99"),
    ("max_position_embeddings", 0),
    ("hidden_act", "nonesuch"),
    ("pad_token_id", 10**30),
    ("eos_token_id", 2**63),
]


@pytest.mark.parametrize(("name", "value"), ODD)
def test_odd_values_of_a_configuration(name: str, value: object, qwen: Path, tmp_path: Path) -> None:
    """An error of ours, or a model: never anything else."""
    copy = Path(shutil.copytree(qwen, tmp_path / "model"))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, name: value}))
    try:
        plan_load(copy)
    except MoeLocalError as error:
        assert error.remedy


def test_layers_without_end_under_any_name(tmp_path: Path) -> None:
    """Here of the part that sees: as many modules are made as any model has, and no more."""
    model = write_tiny_checkpoint(architecture("qwen3_vl_moe"), tmp_path)
    config = json.loads((model / "config.json").read_text())
    config["vision_config"]["depth"] = 10**30
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="more than 50000 modules"):
        plan_load(model)


def test_a_shard_of_a_name_that_no_file_has(qwen: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(qwen, tmp_path / "model"))
    index = json.loads((copy / "model.safetensors.index.json").read_text())
    for name in ("x" * 5000 + ".safetensors", "a\0b.safetensors"):
        index["weight_map"]["x"] = name
        (copy / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(CheckpointError, match="not a safetensors file beside it") as caught:
            Checkpoint.open(copy)
        assert len(str(caught.value)) < 500
