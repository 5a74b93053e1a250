"""Carving a layer, and a whole model."""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.carving import carve
from moe_local.demo.convert import SwiGLU
from moe_local.demo.dense import DenseModel

from .conftest import SHAPE


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
