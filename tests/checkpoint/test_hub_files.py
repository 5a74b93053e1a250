"""Which files of a repository a model takes."""

from __future__ import annotations

import pytest

from moe_local.checkpoint.hub_files import choose_gguf, gguf_models, is_gguf, small_files, weight_files
from moe_local.checkpoint.names import HubName
from moe_local.errors import CheckpointError, UnsupportedError

NAME = HubName("owner/name")
SMALL = ["config.json", "tokenizer.json", "chat_template.jinja"]
OTHERS = ["README.md", "original/model.safetensors", "x.bin", "picture.png"]
INDEX = "model.safetensors.index.json"
A, B = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.mark.parametrize(
    ("files", "shards", "weights"),
    [
        (["model.safetensors"], None, ["model.safetensors"]),
        (["model.safetensors", "model.fp16.safetensors"], None, ["model.safetensors"]),
        (["weights.safetensors"], None, ["weights.safetensors"]),
        (["consolidated.safetensors", "weights.safetensors"], None, ["weights.safetensors"]),
        ([A, B, INDEX, "consolidated.00.safetensors"], [A, B], [A, B]),
        ([A, B, INDEX, "mtp.safetensors"], [A, B, "mtp.safetensors"], [A, B, "mtp.safetensors"]),
        ([A, INDEX, "experts-int8.safetensors"], [A, "experts-int8.safetensors"], ["experts-int8.safetensors", A]),
        ([A, B, INDEX, "model.safetensors"], [A, B], [A, B]),
    ],
)
def test_weights(files: list[str], shards: list[str] | None, weights: list[str]) -> None:
    there = [*files, *SMALL, *OTHERS]
    index = None if shards is None else {"weight_map": {f"tensor{n}": shard for n, shard in enumerate(shards)}}
    assert weight_files(NAME, there, index) == weights
    assert set(small_files(NAME, there)) == {*SMALL, *({INDEX} & {*files})}


def test_a_model_in_a_folder() -> None:
    there = ["config.json", "model.safetensors", "int4/config.json", "int4/model.safetensors", "int4/deep/x.json"]
    name = HubName("owner/name", path="int4")
    assert small_files(name, there) == ["int4/config.json"]
    assert weight_files(name, there, None) == ["int4/model.safetensors"]


@pytest.mark.parametrize("shard", ["sub/model.safetensors", "../model.safetensors", "model.bin", 7, "/x.safetensors"])
def test_shards_that_the_reader_refuses(shard: object) -> None:
    with pytest.raises(CheckpointError, match="not a safetensors file beside it"):
        weight_files(NAME, SMALL, {"weight_map": {"a": A, "b": shard}})


def test_what_cannot_be_run() -> None:
    with pytest.raises(UnsupportedError, match=r"only \.bin"):
        small_files(NAME, ["pytorch_model.bin", "config.json"])
    with pytest.raises(UnsupportedError, match="an adapter"):
        small_files(NAME, ["adapter_model.safetensors", "adapter_config.json"])
    with pytest.raises(CheckpointError, match="2 safetensors files and no"):
        weight_files(NAME, ["a.safetensors", "b.safetensors", "config.json"], None)
    with pytest.raises(CheckpointError, match="names None"):
        weight_files(NAME, [A], {})


MANY = [
    "Name-Q4_K_M.gguf", "Name-Q8_0.gguf", "Name-UD-Q8_0.gguf", "Name-BF16-00001-of-00002.gguf",
    "Name-BF16-00002-of-00002.gguf", "mmproj-F16.gguf", "imatrix.gguf", "Name-imatrix.gguf",
    "IQ4_XS/name-00001-of-00001.gguf", "fp16/name.fp16.gguf", "config.json",
]  # fmt: skip


@pytest.mark.parametrize(
    ("quant", "files"),
    [
        ("Q4_K_M", ["Name-Q4_K_M.gguf"]),
        ("q4_k_m", ["Name-Q4_K_M.gguf"]),
        ("Q8_0", ["Name-Q8_0.gguf"]),
        ("ud-q8_0", ["Name-UD-Q8_0.gguf"]),
        ("bf16", ["Name-BF16-00001-of-00002.gguf", "Name-BF16-00002-of-00002.gguf"]),
        ("IQ4_XS", ["IQ4_XS/name-00001-of-00001.gguf"]),
        ("F16", ["fp16/name.fp16.gguf"]),
    ],
)
def test_a_quantisation_is_chosen(quant: str, files: list[str]) -> None:
    assert list(choose_gguf("owner/name", MANY, quant=quant)) == files


def test_several_are_named() -> None:
    with pytest.raises(CheckpointError) as caught:
        choose_gguf("owner/name", MANY)
    said = str(caught.value)
    assert said.startswith("owner/name holds 6 GGUF models: BF16, IQ4_XS, Q4_K_M, Q8_0, UD-Q8_0, fp16;")
    assert said.endswith("like owner/name:Q4_K_M")


@pytest.mark.parametrize("quant", ["latest", "Q4", "Q4_K", "F1", "*", "30b"])
def test_a_quantisation_that_there_is_not(quant: str) -> None:
    with pytest.raises(CheckpointError, match=r"no GGUF model .* BF16, IQ4_XS, Q4_K_M.*owner/name:Q4_K_M"):
        choose_gguf("owner/name", MANY, quant=quant)


def test_two_of_one_quantisation_are_told_apart_by_file() -> None:
    files = ["a-Q8_0.gguf", "b-Q8_0.gguf", "b-Q4_0.gguf"]
    with pytest.raises(CheckpointError, match=r"2 GGUF models of Q8_0: a-Q8_0.gguf, b-Q8_0.gguf; .*name/a-Q8_0.gguf"):
        choose_gguf("owner/name", files, quant="Q8_0")
    assert choose_gguf("owner/name", files, path="b-Q8_0.gguf") == ("b-Q8_0.gguf",)


def test_one_is_taken_and_any_file_of_a_set_means_the_set() -> None:
    parts = [f"big/x-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    assert list(choose_gguf("owner/name", [*parts, "mmproj-x.gguf"])) == parts
    assert list(choose_gguf("owner/name", [*parts, "y.gguf"], path=parts[1])) == parts
    assert list(choose_gguf("owner/name", [*parts, "y.gguf"], path="big")) == parts
    with pytest.raises(CheckpointError, match="2 of the 3 files"):
        choose_gguf("owner/name", parts[1:])


def test_no_gguf_to_choose_from() -> None:
    with pytest.raises(CheckpointError, match="no GGUF model, so no Q4_K_M"):
        choose_gguf("owner/name", ["model.safetensors", "mmproj-F16.gguf"], quant="Q4_K_M")
    with pytest.raises(CheckpointError, match=r"no GGUF model 'c\.gguf'"):
        choose_gguf("owner/name", ["a-Q8_0.gguf"], path="c.gguf")


def test_safetensors_come_first() -> None:
    both = ["model.safetensors", "config.json", "name-Q8_0.gguf"]
    assert not is_gguf(NAME, both)
    assert is_gguf(HubName("owner/name", quant="Q8_0"), both)
    assert is_gguf(HubName("owner/name", path="name-Q8_0.gguf"), both)
    assert is_gguf(NAME, ["config.json", "deep/name-Q8_0.gguf"])
    assert not is_gguf(NAME, ["config.json", "mmproj-Q8_0.gguf"])
    assert not is_gguf(NAME, [INDEX, "config.json", "name-Q8_0.gguf"])


def test_names_of_published_repositories() -> None:
    published = {
        "Qwen3-30B-A3B-Instruct-2507-UD-IQ2_M.gguf": "UD-IQ2_M",
        "qwen3-30b-a3b.Q6_K.gguf": "Q6_K",
        "gpt-oss-20b-MXFP4.gguf": "MXFP4",
        "gpt-oss-20b-mxfp4.gguf": "mxfp4",
        "Qwen3-Coder.i1-Q4_K_S.gguf": "Q4_K_S",
        "BF16/GLM-4.5-Air-BF16-00001-of-00005.gguf": "BF16",
        "Q8_0/model-00001-of-00002.gguf": "Q8_0",
        "model.gguf": None,
        "Mixtral-8x7B-F16.gguf": "F16",
        "x-Q2_K_L.gguf": "Q2_K_L",
        "x-TQ1_0.gguf": "TQ1_0",
        "Q4-is-not-it.gguf": "Q4",
    }
    assert {model.files[0]: model.quant for model in gguf_models(published)} == published
