"""Sizes from config.json: the same counts as transformers' own skeletons, and as published."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from hypothesis import given
from hypothesis import strategies as st

from moe_local.checkpoint.architecture import experts_modules
from moe_local.errors import CheckpointError, MoeLocalError, UnsupportedError
from moe_local.planning.families import FAMILIES, model_sizes
from moe_local.planning.footprint import kv_cache_bytes
from moe_local.planning.known_models import find_sizes, shipped
from moe_local.planning.weights import DENSE_FORMATS, EXPERT_FORMATS, Formats, dense_bytes, record_bytes
from moe_local.store.first_use import choose
from moe_local.store.first_use import plan as plan_packing
from moe_local.testing import architecture, tiny_config, write_tiny_checkpoint

QWEN = "Qwen/Qwen3-30B-A3B"

# What published models of a family differ in, beside sizes.
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "deepseek_v2": [{"q_lora_rank": None}, {"attention_bias": True, "mlp_bias": True, "n_shared_experts": 3}],
    "deepseek_v3": [{"first_k_dense_replace": 3}, {"q_lora_rank": None, "attention_bias": True}],
    "glm4_moe": [{"use_qk_norm": True}, {"attention_bias": True, "num_key_value_heads": 1}],
    "glm4_moe_lite": [{"mlp_layer_types": ["dense", "dense", "sparse", "sparse"]}, {"attention_bias": True}],
    "gpt_oss": [{"attention_bias": False}, {"head_dim": 32}],
    "granitemoe": [{"attention_bias": True}, {"tie_word_embeddings": True}],
    "minimax_m2": [{"num_key_value_heads": 1}, {"tie_word_embeddings": True}],
    "mixtral": [{"tie_word_embeddings": True}, {"num_key_value_heads": 1}],
    "olmoe": [{"num_key_value_heads": 2}, {"attention_bias": True}],
    "qwen2_moe": [{"qkv_bias": False}, {"decoder_sparse_step": 2, "mlp_only_layers": [3]}],
    "qwen3_moe": [{"decoder_sparse_step": 2}, {"mlp_only_layers": [0, 2], "attention_bias": True}],
}
CASES = [(name, changes) for name in FAMILIES for changes in ({}, *VARIANTS[name])]


def skeleton(name: str, changes: Mapping[str, Any]) -> Any:
    found = architecture(name)
    config = found.config_class(**{**tiny_config(found).to_dict(), **changes})
    with torch.device("meta"):
        return found.model_class(config).eval()


@pytest.mark.parametrize(("name", "changes"), CASES, ids=str)
def test_counts_are_those_of_the_skeleton(name: str, changes: dict[str, Any]) -> None:
    model = skeleton(name, changes)
    sizes = model_sizes(json.loads(json.dumps(model.config.to_dict())), name)
    modules = experts_modules(model)
    routed = [sum(p.numel() for p in module.parameters(recurse=False)) for module in modules.values()]
    assert sizes.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert [count * sizes.expert_parameters for count in sizes.experts] == routed
    assert sizes.dense_held - sizes.dense_read == (0 if sizes.tied else model.get_input_embeddings().weight.numel())
    cached = kv_cache_bytes(model, 4, torch.float32)  # of fewer tokens than a window
    assert 4 * 4 * sizes.kv_per_token == cached


@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss", "deepseek_v2"])
@pytest.mark.parametrize("dense", DENSE_FORMATS)
@pytest.mark.parametrize("experts", EXPERT_FORMATS)
def test_bytes_are_those_of_a_packing(tmp_path: Path, name: str, experts: str, dense: str) -> None:
    directory = write_tiny_checkpoint(architecture(name), tmp_path / name, dtype=torch.bfloat16)
    job = plan_packing(directory, choose(experts, 32, dense))
    sizes, formats = find_sizes(str(directory)), Formats(experts, 32, dense)
    assert record_bytes(sizes, formats) - 4096 < job.layouts[0][0].size <= record_bytes(sizes, formats)
    written = sum(planned.length for planned in job.dense_tensors(job.catalog.dense).values())
    assert dense_bytes(sizes, formats)[0] == written + 2 * sizes.wide  # which is in bf16 in the files


def test_qwen3_30b_by_hand() -> None:
    sizes = find_sizes(QWEN)
    attention = 2048 * 4096 + 2 * 2048 * 512 + 4096 * 2048  # queries of 32 heads of 128, keys and values of 4, output
    norms = 2 * 128 + 2 * 2048  # of queries and keys, and before attention and experts
    router = 128 * 2048
    embedding = 151_936 * 2048
    assert sizes.expert_parameters == 3 * 2048 * 768 == 4_718_592
    assert sizes.dense_read == 48 * (attention + norms + router) + 2048 + embedding == 1_229_928_448
    assert sizes.dense_held == sizes.dense_read + embedding == 1_541_093_376
    assert sizes.parameters == 1_541_093_376 + 48 * 128 * 4_718_592 == 30_532_122_624
    assert (sizes.experts, sizes.top_k, sizes.token_set) == ((128,) * 48, 8, 384)
    assert sizes.kv_per_token == 48 * 2 * 4 * 128


def test_deepseek_v2_lite_by_hand() -> None:
    sizes = find_sizes("deepseek-ai/DeepSeek-V2-Lite")
    attention = 2048 * 16 * 192 + 2048 * 576 + 512 * 16 * 256 + 16 * 128 * 2048
    norms = 512 + 2 * 2048
    moe = 64 * 2048 + 2 * 3 * 2048 * 1408  # router, two shared experts
    assert sizes.dense_held == (27 * (attention + norms) + 26 * moe + 3 * 2048 * 10_944 + 2048 + 2 * 102_400 * 2048)
    assert sizes.kv_per_token == 27 * 576


@pytest.mark.parametrize("name", [known["name"] for known in shipped().values()])
def test_totals_are_as_published(name: str) -> None:
    described = shipped()[name.lower()]
    assert find_sizes(name).parameters / 1e9 == pytest.approx(described["billions"], rel=0.01)
    assert all(described["sources"])


def test_notes_say_what_is_left_out() -> None:
    assert "multi-token" in find_sizes("zai-org/GLM-4.5-Air").notes[0]
    assert find_sizes(QWEN).notes == ()


def qwen_config(**changes: Any) -> dict[str, Any]:
    config = {**shipped()[QWEN.lower()]["config"], **changes}
    return {name: value for name, value in config.items() if value is not ...}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden_size": ...}, "has no hidden_size"),
        ({"hidden_size": None}, "has no hidden_size"),
        ({"hidden_size": 0}, "hidden_size 0"),
        ({"hidden_size": -2048}, "hidden_size -2048"),
        ({"hidden_size": "2048"}, "hidden_size '2048'"),
        ({"hidden_size": 2048.0}, "hidden_size 2048.0"),
        ({"hidden_size": True}, "hidden_size True"),
        ({"hidden_size": 10**30}, "hidden_size 1000"),
        ({"vocab_size": [1] * 1000}, "vocab_size [1, 1"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers 1000000"),
        ({"num_experts": {}}, "num_experts {}"),
        ({"num_experts_per_tok": 129}, "num_experts_per_tok 129"),
        ({"num_key_value_heads": 33}, "num_key_value_heads 33"),
        ({"head_dim": ..., "num_attention_heads": 4096}, "head_dim 0"),
        ({"decoder_sparse_step": 0}, "decoder_sparse_step 0"),
        ({"mlp_only_layers": 3}, "mlp_only_layers 3"),
        ({"mlp_only_layers": ["3"]}, "mlp_only_layers ['3']"),
        ({"attention_bias": 1}, "attention_bias 1"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings 'no'"),
        ({"max_position_embeddings": -1}, "max_position_embeddings -1"),
        ({"model_type": ...}, "model_type"),
        ({"model_type": ["qwen3_moe"]}, "model_type"),
    ],
    ids=str,
)
def test_nonsense_is_refused_by_field(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(qwen_config(**changes)))
    with pytest.raises(CheckpointError) as caught:
        find_sizes(str(tmp_path))
    assert str(file) in str(caught.value)
    assert said in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(file))


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"{", "not valid JSON"), (b"[]", "JSON object"), (b"\xff\xfe", "not valid JSON"), (b"[" * 200_000, "JSON")],
)
def test_files_that_are_no_configuration(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=said):
        find_sizes(str(tmp_path / "config.json"))


def test_a_file_of_many_gigabytes_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(1 << 34)
    with pytest.raises(CheckpointError, match="too large"):
        find_sizes(str(tmp_path))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "llama"}, "qwen3_moe"),
        ({"mlp_only_layers": list(range(48))}, "no layer with experts"),
        ({"decoder_sparse_step": 49}, "no layer with experts"),
    ],
)
def test_other_kinds_of_models(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UnsupportedError, match=said):
        model_sizes(qwen_config(**changes), "x")


def test_layers_that_transformers_would_build_otherwise() -> None:
    config = shipped()["deepseek-ai/deepseek-v2-lite"]["config"]
    with pytest.raises(UnsupportedError, match="moe_layer_freq"):
        model_sizes({**config, "moe_layer_freq": 2}, "x")
    with pytest.raises(CheckpointError, match="q_lora_rank"):
        model_sizes({name: value for name, value in config.items() if name != "q_lora_rank"}, "x")


@given(
    name=st.sampled_from(sorted(shipped())),
    field=st.integers(0, 40),
    value=st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.lists(st.integers())
    ),
)
def test_any_value_of_any_field_is_counted_or_refused(name: str, field: int, value: Any) -> None:
    config = dict(shipped()[name]["config"])
    config[list(config)[field % len(config)]] = value
    try:
        sizes = model_sizes(config, name)
    except MoeLocalError:
        return
    assert sizes.parameters > 0
    assert sizes.top_k <= min(sizes.experts)


def test_finding_a_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = json.dumps(qwen_config(num_hidden_layers=3))
    (tmp_path / "config.json").write_text(config)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for repo, main in (("a/main", "abc"), ("a/elsewhere", None), (QWEN, "abc")):
        folder = tmp_path / "hub" / f"models--{repo.replace('/', '--')}"
        (folder / "snapshots" / "abc").mkdir(parents=True)
        (folder / "snapshots" / "abc" / "config.json").write_text(config)
        if main:
            (folder / "refs").mkdir()
            (folder / "refs" / "main").write_text(main)
    for where in (tmp_path, tmp_path / "config.json", "a/main", "a/elsewhere", QWEN):  # the cache before what we ship
        assert len(find_sizes(str(where)).experts) == 3
    assert len(find_sizes("qwen/qwen1.5-moe-a2.7b").experts) == 24


@pytest.mark.parametrize("name", ["a/b", "nothing", "a\0b", "x" * 5000, "~nobody-at-all/x", "", "../../etc"])
def test_what_is_not_here(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError):
        find_sizes(name)


def test_gguf_files_are_for_inspect(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(UnsupportedError, match="inspect"):
        find_sizes(str(tmp_path / "model.gguf"))
