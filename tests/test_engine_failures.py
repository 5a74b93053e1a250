"""Damaged files, disks that fail, and options that make no sense: said, and the engine goes on."""

from __future__ import annotations

import math
import shutil
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from moe_local import Sampling
from moe_local.engine import load
from moe_local.errors import CheckpointError, MoeLocalError, StorageError
from moe_local.planning.options import Options
from moe_local.testing import FailingDisk

PROMPT = "The quick brown fox"
GREEDY = Sampling(max_new_tokens=16, temperature=0)


def test_a_failing_disk_in_the_middle_of_a_generation(qwen: Path) -> None:
    """The error names the file; the engine goes on working when the disk does."""
    broken = threading.Event()
    with load(
        qwen,
        Options(experts=0.25),
        read_at=lambda reader: FailingDisk(reader, lambda number: broken.is_set()),
    ) as engine:
        wanted = engine.generate(PROMPT, GREEDY).token_ids
        broken.set()
        with pytest.raises(StorageError, match=r"reading .*safetensors failed"):
            engine.generate(PROMPT, GREEDY)
        broken.clear()
        assert engine.generate(PROMPT, GREEDY).token_ids == wanted


def test_a_file_cut_off_while_in_use(qwen: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(qwen, tmp_path / "model"))
    with load(copy, Options(experts=0.001)) as engine:
        for shard in copy.glob("model-*.safetensors"):
            with shard.open("r+b") as stream:
                stream.truncate(64)
        with pytest.raises(StorageError, match="has changed"):
            engine.generate(PROMPT, GREEDY)


def _with_tensors(source: Path, target: Path, change: object) -> Path:
    shutil.copytree(source, target)
    for shard in target.glob("*.safetensors"):
        tensors = load_file(shard)
        change(tensors)  # type: ignore[operator]
        save_file(tensors, shard, metadata={"format": "pt"})
    return target


def test_damaged_weights_that_give_nan_are_said(mixtral: Path, tmp_path: Path) -> None:
    def poison(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.norm.weight"] = tensors["model.norm.weight"] * float("nan")

    with (
        load(_with_tensors(mixtral, tmp_path / "nan", poison)) as engine,
        pytest.raises(CheckpointError, match="NaN"),
    ):
        engine.generate(PROMPT, GREEDY)


def test_a_missing_dense_tensor_is_named(mixtral: Path, tmp_path: Path) -> None:
    broken = _with_tensors(mixtral, tmp_path / "broken", lambda tensors: tensors.pop("model.norm.weight"))
    with pytest.raises(CheckpointError, match=r"lacks model\.norm\.weight"):
        load(broken)


def test_a_dense_tensor_of_a_wrong_shape_is_named(mixtral: Path, tmp_path: Path) -> None:
    def cut(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.norm.weight"] = tensors["model.norm.weight"][:-1].clone()

    with pytest.raises(CheckpointError, match=r"model\.norm\.weight of shape"):
        load(_with_tensors(mixtral, tmp_path / "broken", cut))


def test_a_tokenizer_is_only_needed_for_text(mixtral: Path, tmp_path: Path) -> None:
    bare = Path(shutil.copytree(mixtral, tmp_path / "bare"))
    for file in bare.glob("*token*"):
        file.unlink()
    with load(bare) as engine:
        assert engine.model(torch.tensor([[1, 2, 3]])).logits.isfinite().all()
        with pytest.raises(CheckpointError, match="tokenizer"):
            engine.generate(PROMPT, GREEDY)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (Options(device="tpu"), "--device tpu"),
        (Options(dtype="int3"), "--dtype int3"),
        (Options(context=0), "--context 0"),
        (Options(context=10**9), "positions"),
    ],
)
def test_options_that_make_no_sense(qwen: Path, options: Options, said: str) -> None:
    with pytest.raises(MoeLocalError, match=said):
        load(qwen, options)


@pytest.mark.parametrize(
    "wrong",
    [
        {"experts": 0.0},
        {"experts": 5.0},
        {"experts": math.nan},
        {"host_experts": -1.0},
        {"ram": -1},
        {"vram": -1},
    ],
)
def test_options_that_cannot_be(wrong: dict[str, float]) -> None:
    with pytest.raises(MoeLocalError):
        Options(**wrong)  # type: ignore[arg-type]


def test_tokens_outside_the_vocabulary(qwen: Path) -> None:
    with load(qwen, Options(context=128)) as engine:
        for ids in ([1, 10**6], [-1]):
            with pytest.raises(CheckpointError, match="tokenizer"):
                engine.generate(ids, GREEDY)


def test_a_system_message_needs_a_template(qwen: Path) -> None:
    with load(qwen, Options(context=128)) as engine, pytest.raises(MoeLocalError, match="system"):
        engine.encode("hello", raw=True, system="Be kind.")
