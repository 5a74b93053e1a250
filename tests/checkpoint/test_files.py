"""Checkpoint directories: whole ones open, others say what is wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from moe_local.checkpoint.files import Checkpoint
from moe_local.checkpoint.names import INDEX
from moe_local.checkpoint.schemes import method
from moe_local.errors import CheckpointError, MoeLocalError, UnsupportedError


@pytest.fixture
def copy(qwen: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(qwen, tmp_path / "model"))


def _first_shard(directory: Path) -> Path:
    return min(directory.glob("model-*.safetensors"))


def test_all_shards_are_read(qwen: Path) -> None:
    checkpoint = Checkpoint.open(qwen)
    assert len(checkpoint.files) > 1
    assert checkpoint.total_bytes == json.loads((qwen / INDEX).read_text())["metadata"]["total_size"]


def test_one_file_is_enough(mixtral: Path) -> None:
    assert len(Checkpoint.open(mixtral).files) == 1


def _edit_index(change: Callable[[dict[str, str]], object]) -> Callable[[Path], object]:
    def edit(directory: Path) -> None:
        index = json.loads((directory / INDEX).read_text())
        change(index["weight_map"])
        (directory / INDEX).write_text(json.dumps(index))

    return edit


def _only_pickles(directory: Path) -> None:
    for file in [*directory.glob("*.safetensors"), directory / INDEX]:
        file.unlink()
    (directory / "pytorch_model.bin").write_bytes(b"\x80\x04.")


def _only(suffix: str) -> Callable[[Path], object]:
    def edit(directory: Path) -> None:
        _only_pickles(directory)
        (directory / "pytorch_model.bin").rename(directory / f"model{suffix}")

    return edit


def _duplicate(directory: Path) -> None:
    extra = directory / "model-00099-of-00099.safetensors"
    shutil.copy(_first_shard(directory), extra)
    _edit_index(lambda names: names.__setitem__("extra", extra.name))(directory)


def _truncate(directory: Path) -> None:
    shard = _first_shard(directory)
    shard.write_bytes(shard.read_bytes()[:-100])


CASES: dict[str, tuple[Callable[[Path], object], type[MoeLocalError], str]] = {
    "missing shard": (lambda d: _first_shard(d).unlink(), CheckpointError, "model-00001.* is missing"),
    "truncated shard": (_truncate, CheckpointError, "model-00001.* is truncated"),
    "missing config": (lambda d: (d / "config.json").unlink(), CheckpointError, "config.json is missing"),
    "broken config": (
        lambda d: (d / "config.json").write_text("{"),
        CheckpointError,
        "config.json is not valid",
    ),
    "config of bytes": (
        lambda d: (d / "config.json").write_bytes(b"\xff\xfe"),
        CheckpointError,
        "config.json is not valid",
    ),
    "config not an object": (lambda d: (d / "config.json").write_text("[]"), CheckpointError, "JSON object"),
    "index without map": (lambda d: (d / INDEX).write_text("{}"), CheckpointError, "no weight_map"),
    "index out of the directory": (
        _edit_index(lambda names: names.__setitem__("x", "../../secret.safetensors")),
        CheckpointError,
        "not a safetensors file beside it",
    ),
    "index names a pickle": (
        _edit_index(lambda names: names.__setitem__("x", "pytorch_model.bin")),
        CheckpointError,
        "not a safetensors file beside it",
    ),
    "index promises too much": (
        _edit_index(lambda names: names.__setitem__("x", next(iter(names.values())))),
        CheckpointError,
        "lacks tensor 'x'",
    ),
    "a shard without what it is listed for": (_duplicate, CheckpointError, "lacks tensor 'extra'"),
    "no index": (lambda d: (d / INDEX).unlink(), CheckpointError, "no model.safetensors.index.json"),
    "pickles only": (_only_pickles, UnsupportedError, "pickled weights only"),
    "GGUF only": (_only(".gguf"), CheckpointError, "GGUF"),
    "nothing": (_only(".txt"), CheckpointError, "no safetensors"),
}


@pytest.mark.parametrize("case", CASES)
def test_damage_is_named(copy: Path, case: str) -> None:
    damage, kind, said = CASES[case]
    damage(copy)
    with pytest.raises(kind, match=said) as caught:
        Checkpoint.open(copy)
    assert "\n" not in str(caught.value)


def test_no_directory(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a directory"):
        Checkpoint.open(tmp_path / "absent")


def _overlay(directory: Path, name: str, *, listed: bool) -> tuple[str, dict[str, str]]:
    """Adds a shard with a copy, of zeros, of the first shard's first tensor. Returns its name, and the index."""
    tensors = load_file(_first_shard(directory))
    tensor = sorted(tensors)[0]
    save_file({tensor: torch.zeros_like(tensors[tensor]), "another": torch.ones(2)}, directory / name)
    found: dict[str, str] = {}

    def change(names: dict[str, str]) -> None:
        names["another"] = name
        if listed:
            names[tensor] = name
        else:
            del names[tensor]
        found.update(names)

    _edit_index(change)(directory)
    return tensor, found


@pytest.mark.parametrize("name", ["a.safetensors", "zz.safetensors"])
def test_the_index_decides_between_copies(copy: Path, name: str) -> None:
    tensor, _ = _overlay(copy, name, listed=True)
    entries = Checkpoint.open(copy).tensors
    assert entries[tensor].file.name == name
    assert entries["another"].file.name == name


def test_copies_that_the_index_lists_nowhere_are_left_out(copy: Path) -> None:
    tensor, names = _overlay(copy, "a.safetensors", listed=False)
    assert Checkpoint.open(copy).tensors.keys() == names.keys() - {tensor}


def test_a_tensor_that_the_index_does_not_list_is_found(copy: Path) -> None:
    save_file({"listed": torch.ones(1), "unlisted": torch.ones(1)}, copy / "a.safetensors")
    _edit_index(lambda names: names.__setitem__("listed", "a.safetensors"))(copy)
    assert "unlisted" in Checkpoint.open(copy).tensors


def test_settings_of_quantisation_in_a_file_of_their_own(copy: Path) -> None:
    (copy / "hf_quant_config.json").write_text('{"quantization": {"quant_algo": "NVFP4"}}')
    assert method(Checkpoint.open(copy)) == "modelopt"
