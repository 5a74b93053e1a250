"""GGUF files of older layouts and other writers: the model must be the one that the file means."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGUFValueType
from transformers import PreTrainedModel

from moe_local import Options
from moe_local.checkpoint.files import Checkpoint
from moe_local.checkpoint.models.grok import Grok1Config
from moe_local.engine import load
from moe_local.errors import CheckpointError, MoeLocalError, UnsupportedError
from moe_local.store import first_use, pack
from moe_local.testing import architecture, tiny_inputs
from moe_local.testing.gguf import NAMES, write_tiny_gguf

OPTIONS = Options(device="cpu", context=64, experts=0.5, dtype="float32")
Pieces = Iterable[tuple[str, Any, Any]]


def rewritten(
    source: Path,
    target: Path,
    *,
    drop: Iterable[str] = (),
    add: Mapping[str, tuple[GGUFValueType, Any]] = {},
    tensors: Callable[[Any], Pieces] = lambda tensor: [(tensor.name, tensor.data, tensor.tensor_type)],
    more: Mapping[str, Any] = {},
    retype: Callable[[GGUFValueType], GGUFValueType] = lambda kind: kind,
    rename: str | None = None,
) -> Path:
    """A copy of a GGUF file without some keys, with others, other tensors or types of numbers, or of another
    architecture."""
    reader = gguf.GGUFReader(source)
    original = reader.fields["general.architecture"].contents()
    name = rename or original
    writer = gguf.GGUFWriter(target, name)
    for key, found in reader.fields.items():
        short = key.removeprefix(f"{original}.")
        key = f"{name}.{short}" if short != key else key
        if key.startswith("GGUF.") or key == "general.architecture" or short in drop or short in add:
            continue
        value, kind = found.contents(), found.types[0]
        if kind == GGUFValueType.ARRAY:
            writer.add_array(key, value)
        else:
            writer.add_key_value(key, value, retype(kind))
    for short, (kind, value) in add.items():
        writer.add_key_value(f"{name}.{short}", value, kind)
    for tensor in reader.tensors:
        for its_name, data, its_kind in tensors(tensor):
            writer.add_tensor(its_name, np.ascontiguousarray(data), raw_dtype=its_kind)
    for its_name, data in more.items():
        writer.add_tensor(its_name, np.asarray(data, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def assert_is(file: Path, name: str, model: PreTrainedModel, tokens: int = 40) -> None:
    inputs = tiny_inputs(architecture(name), tokens=tokens)
    with load(file, OPTIONS) as engine, torch.no_grad():
        torch.testing.assert_close(engine.model(**inputs).logits, model(**inputs).logits, rtol=1e-5, atol=2e-5)


def _divide(model: PreTrainedModel, factors: Iterable[float]) -> list[float]:
    rotary = model.model.rotary_emb
    given = list(factors)
    rotary.inv_freq /= torch.tensor(given)
    return given


@pytest.mark.parametrize("name", ["mixtral", "granitemoe", "llama4"])
@pytest.mark.parametrize("linear", [1.0, 2.0])
def test_factors_of_positions(name: str, linear: float, tmp_path: Path) -> None:
    model = write_tiny_gguf(architecture(name), tmp_path / "a.gguf", "F32")
    factors = _divide(model, np.linspace(1, 8, len(model.model.rotary_emb.inv_freq)))
    model.model.rotary_emb.inv_freq /= linear
    scaling = {
        "rope.scaling.type": (GGUFValueType.STRING, "linear"),
        "rope.scaling.factor": (GGUFValueType.FLOAT32, linear),
    }
    file = rewritten(
        tmp_path / "a.gguf",
        tmp_path / "b.gguf",
        more={"rope_freqs.weight": factors},
        add=scaling if linear > 1 else {},
    )
    assert_is(file, name, model)
    store = pack(first_use.plan(file, first_use.choose("fp32", dense="keep")), tmp_path / "store")
    assert_is(store, name, model)


@pytest.mark.parametrize(("trained", "which"), [(8, 1), (64, 0)])
def test_two_sets_of_factors(trained: int, which: int, tmp_path: Path) -> None:
    """The long ones count in a text that is longer than what the model was trained with."""
    model = write_tiny_gguf(architecture("mixtral"), tmp_path / "a.gguf", "F32")
    count = len(model.model.rotary_emb.inv_freq)
    sets = [np.linspace(1, 2, count), np.linspace(1, 9, count)]
    _divide(model, sets[which])
    model.model.rotary_emb.attention_scaling = 1.25
    add = {
        "rope.scaling.type": (GGUFValueType.STRING, "longrope"),
        "rope.scaling.original_context_length": (GGUFValueType.UINT32, trained),
        "rope.scaling.attn_factor": (GGUFValueType.FLOAT32, 1.25),
    }
    more = {"rope_factors_short.weight": sets[0], "rope_factors_long.weight": sets[1]}
    assert_is(rewritten(tmp_path / "a.gguf", tmp_path / "b.gguf", add=add, more=more), "mixtral", model)


@pytest.mark.parametrize(
    ("name", "more", "error", "said"),
    [
        ("mixtral", {"rope_freqs.weight": [1.0]}, CheckpointError, "no 8 factors"),
        ("mixtral", {"rope_freqs.weight": [0.0] * 8}, CheckpointError, "damaged tensor"),
        ("mixtral", {"rope_freqs.weight": [[1.0]]}, UnsupportedError, "not understood"),
        ("mixtral", {"rope_factors_long.weight": [1.0] * 8}, CheckpointError, "no 8 factors"),
        ("qwen3_moe", {"rope_freqs.weight": [1.0] * 8}, UnsupportedError, "'rope_freqs.weight'"),
    ],
)
def test_factors_that_fit_nothing(
    name: str, more: dict[str, Any], error: type[MoeLocalError], said: str, tmp_path: Path
) -> None:
    write_tiny_gguf(architecture(name), tmp_path / "a.gguf", "F32")
    with pytest.raises(error, match=said):
        Checkpoint.open(rewritten(tmp_path / "a.gguf", tmp_path / "b.gguf", more=more))


@pytest.mark.parametrize("key", ["rope.scale_linear", "rope.scaling.factor"])
def test_positions_scaled_without_saying_how(key: str, tmp_path: Path) -> None:
    model = write_tiny_gguf(architecture("qwen3_moe"), tmp_path / "a.gguf", "F32")
    model.model.rotary_emb.inv_freq /= 4
    file = rewritten(tmp_path / "a.gguf", tmp_path / "b.gguf", add={key: (GGUFValueType.FLOAT32, 4.0)})
    assert_is(file, "qwen3_moe", model)


def one_by_one(tensor: Any) -> Pieces:
    found = re.fullmatch(r"blk\.(\d+)\.ffn_(gate|up|down)_exps\.weight", tensor.name)
    if found is None:
        return [(tensor.name, tensor.data, tensor.tensor_type)]
    layer, projection = found.groups()
    return [
        (f"blk.{layer}.ffn_{projection}.{i}.weight", part, tensor.tensor_type) for i, part in enumerate(tensor.data)
    ]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("mixtral", "Q4_0"),
        ("mixtral", "F16"),
        ("qwen2_moe", "Q8_0"),
        ("lfm2_moe", "F32"),
        ("dbrx", "F16"),
        ("grok", "F32"),
    ],
)
def test_experts_one_by_one(name: str, kind: str, tmp_path: Path) -> None:
    model = write_tiny_gguf(architecture(name), tmp_path / "a.gguf", kind)
    assert_is(rewritten(tmp_path / "a.gguf", tmp_path / "b.gguf", tensors=one_by_one), name, model)


def test_experts_of_different_types(tmp_path: Path) -> None:
    """Some of them quantised, which only files of experts one by one can have."""
    model = write_tiny_gguf(architecture("mixtral"), tmp_path / "a.gguf", "F32")
    experts = model.state_dict()

    def pieces(tensor: Any) -> Pieces:
        for its_name, data, kind in one_by_one(tensor):
            if re.search(r"ffn_\w+\.[02]\.weight", its_name):
                kind = gguf.GGMLQuantizationType.Q8_0
                data = gguf.quants.quantize(np.ascontiguousarray(data), kind)
                _put(experts, its_name, torch.from_numpy(gguf.quants.dequantize(data, kind).copy()))
            yield its_name, data, kind

    file = rewritten(tmp_path / "a.gguf", tmp_path / "b.gguf", tensors=pieces)
    assert_is(file, "mixtral", model)


def _put(state: Mapping[str, torch.Tensor], name: str, numbers: torch.Tensor) -> None:
    _, layer, projection, expert, _ = name.split(".")
    key = next(
        key
        for key in state
        if f"layers.{layer}." in key and "experts" in key and ("down" in projection) == ("down" in key)
    )
    whole = state[key][int(expert)]
    half = len(whole) // 2
    target = whole if "down" in projection else whole[:half] if "gate" in projection else whole[half:]
    target.copy_(numbers)


WIDTHS = ("feed_forward_length", "expert_feed_forward_length", "expert_shared_feed_forward_length", "expert_count")
SAID_BY_TENSORS = {
    "qwen2_moe": WIDTHS,
    "qwen3_moe": WIDTHS,
    "mixtral": WIDTHS[:1],
    "granitemoe": WIDTHS,
    "gpt_oss": WIDTHS,
    "glm4_moe": WIDTHS[1:],
    "lfm2_moe": WIDTHS[1:],
}


@pytest.mark.parametrize("name", SAID_BY_TENSORS)
def test_widths_that_the_tensors_say(name: str, tmp_path: Path) -> None:
    model = write_tiny_gguf(architecture(name), tmp_path / "a.gguf", "F32")
    file = rewritten(tmp_path / "a.gguf", tmp_path / "b.gguf", drop=SAID_BY_TENSORS[name])
    assert_is(file, name, model, tokens=12)


OTHER_TYPES: dict[str, dict[GGUFValueType, GGUFValueType]] = {
    "wide": {
        GGUFValueType.UINT32: GGUFValueType.UINT64,
        GGUFValueType.INT32: GGUFValueType.INT64,
        GGUFValueType.FLOAT32: GGUFValueType.FLOAT64,
    },
    "signed": {GGUFValueType.UINT32: GGUFValueType.INT32, GGUFValueType.BOOL: GGUFValueType.UINT8},
    "floats": {GGUFValueType.UINT32: GGUFValueType.FLOAT32},
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("types", OTHER_TYPES)
def test_numbers_of_other_types(name: str, types: str, tmp_path: Path) -> None:
    write_tiny_gguf(architecture(name), tmp_path / "a.gguf", "F32")
    other = OTHER_TYPES[types]
    file = rewritten(tmp_path / "a.gguf", tmp_path / "b.gguf", retype=lambda kind: other.get(kind, kind))
    wanted, found = Checkpoint.open(tmp_path / "a.gguf"), Checkpoint.open(file)
    assert found.config == wanted.config
    assert all(type(found.config[key]) is type(value) for key, value in wanted.config.items())


@pytest.mark.parametrize(
    "value", [(GGUFValueType.FLOAT32, 1.5), (GGUFValueType.STRING, "4"), (GGUFValueType.BOOL, True)]
)
def test_what_is_no_whole_number_is_refused(value: tuple[GGUFValueType, Any], tmp_path: Path) -> None:
    write_tiny_gguf(architecture("qwen3_moe"), tmp_path / "a.gguf", "F32")
    with pytest.raises(CheckpointError, match="block_count is"):
        Checkpoint.open(rewritten(tmp_path / "a.gguf", tmp_path / "b.gguf", add={"block_count": value}))


def test_text_of_a_model_that_sees_images(tmp_path: Path) -> None:
    model = write_tiny_gguf(architecture("qwen3_moe"), tmp_path / "a.gguf", "F32")
    add = {"n_deepstack_layers": (GGUFValueType.UINT32, 3)}
    assert_is(rewritten(tmp_path / "a.gguf", tmp_path / "b.gguf", rename="qwen3vlmoe", add=add), "qwen3_moe", model)


@pytest.mark.parametrize("name", ["deepseek_v2", "deepseek_v3"])
def test_latent_attention_before_it_was_split(name: str, tmp_path: Path) -> None:
    """Until April 2025: one matrix for keys and values, and what is said of their widths is of them."""
    model = write_tiny_gguf(architecture(name), tmp_path / "a.gguf", "F32")
    config, state = model.config, model.state_dict()
    key, value = config.qk_nope_head_dim + config.qk_rope_head_dim, config.v_head_dim
    file = rewritten(
        tmp_path / "a.gguf",
        tmp_path / "b.gguf",
        drop=("attention.key_length_mla", "attention.value_length_mla"),
        add={
            "attention.head_count_kv": (GGUFValueType.UINT32, config.num_attention_heads),
            "attention.key_length": (GGUFValueType.UINT32, key),
            "attention.value_length": (GGUFValueType.UINT32, value),
        },
        tensors=lambda t: [] if re.search("attn_[kv]_b", t.name) else [(t.name, t.data, t.tensor_type)],
        more={
            f"blk.{n}.attn_kv_b.weight": state[f"model.layers.{n}.self_attn.kv_b_proj.weight"]
            for n in range(config.num_hidden_layers)
        },
    )
    assert_is(file, name, model, tokens=12)


def test_grok_of_before_its_scales_were_written(tmp_path: Path) -> None:
    model: Any = write_tiny_gguf(architecture("grok"), tmp_path / "a.gguf", "F32")
    keys = ("attention.output_scale", "attn_logit_softcapping", "embedding_scale", "logit_scale")
    file = rewritten(tmp_path / "a.gguf", tmp_path / "b.gguf", drop=keys)
    as_published = Grok1Config()
    for name in ("embedding_multiplier_scale", "output_multiplier_scale"):
        setattr(model.config, name, getattr(as_published, name))
    for layer in model.model.layers:
        layer.self_attn.scaling = as_published.attn_output_multiplier
        layer.self_attn.attn_logit_softcapping = as_published.max_attn_value
    assert_is(file, "grok", model)


def test_grok_2_is_refused(tmp_path: Path) -> None:
    """Which has a dense MLP beside the experts."""
    write_tiny_gguf(architecture("grok"), tmp_path / "a.gguf", "F32")
    file = rewritten(tmp_path / "a.gguf", tmp_path / "b.gguf", more={"blk.0.ffn_up.weight": [[1.0] * 64]})
    with pytest.raises(UnsupportedError, match=r"'blk\.0\.ffn_up\.weight' .* not understood"):
        Checkpoint.open(file)


def test_llama4_of_128_experts_has_no_norms_of_queries_and_keys(tmp_path: Path) -> None:
    write_tiny_gguf(architecture("llama4"), tmp_path / "a.gguf", "F32")
    more = {"expert_count": (GGUFValueType.UINT32, 128)}
    file = rewritten(tmp_path / "a.gguf", tmp_path / "b.gguf", add=more)
    assert Checkpoint.open(tmp_path / "a.gguf").config["use_qk_norm"]
    assert not Checkpoint.open(file).config["use_qk_norm"]


def test_a_dense_model_of_an_architecture_that_may_have_experts(tmp_path: Path) -> None:
    write_tiny_gguf(architecture("gemma4"), tmp_path / "a.gguf", "F32")
    file = rewritten(tmp_path / "a.gguf", tmp_path / "b.gguf", add={"expert_count": (GGUFValueType.UINT32, 0)})
    with pytest.raises(UnsupportedError, match="is a dense model"):
        Checkpoint.open(file)


def test_a_tensor_that_cannot_be_what_it_is_called(tmp_path: Path) -> None:
    write_tiny_gguf(architecture("qwen3_5_moe"), tmp_path / "a.gguf", "F32")
    file = rewritten(tmp_path / "a.gguf", tmp_path / "b.gguf", add={"ssm.group_count": (GGUFValueType.UINT32, 3)})
    with pytest.raises(UnsupportedError, match=r"'blk\.0\.ssm_a' .* not understood"):
        Checkpoint.open(file)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("expert_group_count", 3),
        ("expert_group_count", 8),
        ("expert_group_used_count", 2),
        ("block_count", 1 << 30),
        ("nextn_predict_layers", 4),
    ],
)
def test_counts_that_make_no_model(key: str, value: int, tmp_path: Path) -> None:
    write_tiny_gguf(architecture("deepseek_v3"), tmp_path / "a.gguf", "F32")
    file = rewritten(tmp_path / "a.gguf", tmp_path / "b.gguf", add={key: (GGUFValueType.UINT32, value)})
    with pytest.raises(CheckpointError, match=r"cannot be understood: its deepseek2\.(expert_group|block_count)"):
        Checkpoint.open(file)
