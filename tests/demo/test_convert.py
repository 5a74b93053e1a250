"""From a dense model and a carving to a checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.carving import calibrate, carve
from moe_local import demo
from moe_local.demo import convert
from moe_local.demo.convert import Carving, CarvingShape
from moe_local.demo.dense import DenseModel
from moe_local.errors import CheckpointError

from .conftest import CONFIG, SHAPE, silent, tiny_carving


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
