"""A layer's experts by the Triton kernels, interpreted, against each format's own decoding and float32."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from moe_local.kernels.gating import Gating
from tests.kernels.experts import ACTIVATIONS
from tests.kernels.triton_layers import ENCODINGS, Layer, check, check_in_ram, clamped, experts_of, given

FEW, MANY = 2, 12  # tokens: each choice by itself, or tiles of the rows of an expert
BIASES = (torch.bfloat16, torch.float16, torch.float32)


@pytest.fixture(autouse=True)
def _same_numbers() -> None:
    torch.manual_seed(0)


def _layer(name: str, **options: Any) -> Layer:
    """Of few numbers: an interpreter is slow."""
    size = 128 if name == "int4-128" else 64
    return Layer(ENCODINGS[name], hidden=size, inner=size, **options)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kernels that are launched."""
    from triton.runtime.interpreter import InterpretedFunction

    seen: list[str] = []
    run = InterpretedFunction.run

    def counted(self: Any, *arguments: Any, **options: Any) -> Any:
        seen.append(self.fn.__name__)
        return run(self, *arguments, **options)

    monkeypatch.setattr(InterpretedFunction, "run", counted)
    return seen


@pytest.mark.parametrize("tokens", [FEW, MANY])
@pytest.mark.parametrize("name", ENCODINGS)
def test_every_format(name: str, tokens: int) -> None:
    check(_layer(name), tokens, 3)


@pytest.mark.parametrize("tokens", [FEW, MANY])
@pytest.mark.parametrize("name", ENCODINGS)
def test_interleaved_with_biases(name: str, tokens: int) -> None:
    check(_layer(name, gating=clamped(interleaved=True), bias=torch.bfloat16), tokens, 2)


@pytest.mark.parametrize("tokens", [FEW, MANY])
@pytest.mark.parametrize("name", ENCODINGS)
def test_gate_and_up_as_two_matrices(name: str, tokens: int) -> None:
    check(_layer(name, halves=True, bias=torch.float32), tokens, 2)


RAGGED = {
    "int8": (76, 92),
    "nf4": (72, 64),
    "mxfp4": (32, 96),
    "nvfp4": (48, 80),
    "fp8": (132, 36),
    "fp8-rows": (68, 76),
    "bf16": (70, 53),
    "fp16": (51, 71),
    "fp32": (33, 65),
    "int4-32": (96, 32),
}


@pytest.mark.parametrize("tokens", [FEW, MANY])
@pytest.mark.parametrize("gating", [Gating("silu"), Gating("silu", interleaved=True), Gating("relu", gated=False)])
@pytest.mark.parametrize("name", RAGGED)
def test_sizes_that_fill_no_tile(name: str, gating: Gating, tokens: int) -> None:
    hidden, inner = RAGGED[name]
    check(Layer(ENCODINGS[name], gating, hidden, inner, bias=torch.float16), tokens, 2)


@pytest.mark.parametrize("tokens", [FEW, MANY])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation(activation: str, gated: bool, tokens: int) -> None:
    check(Layer(ENCODINGS["int8"], Gating(activation, gated=gated), 64, 64, bias=torch.float32), tokens, 2)


@pytest.mark.parametrize("interleaved", [False, True])
def test_clamped_gates(interleaved: bool) -> None:
    check(Layer(ENCODINGS["bf16"], clamped(interleaved=interleaved), 64, 64), FEW, 2)


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("tokens", [FEW, MANY])
def test_biases_of_every_type(bias: torch.dtype, tokens: int) -> None:
    check(Layer(ENCODINGS["int4-32"], hidden=64, inner=64, bias=bias), tokens, 2)


@pytest.mark.parametrize("tokens", [FEW, MANY])
@pytest.mark.parametrize("name", ["bf16", "fp32"])
def test_matrices_that_lie_transposed(name: str, tokens: int) -> None:
    check(Layer(ENCODINGS[name], clamped(interleaved=True), 48, 40, transposed=True), tokens, 2)


@pytest.mark.parametrize("tokens", [FEW, MANY])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["int4-64", "int8", "nf4", "mxfp4", "bf16"])
def test_half_precision(name: str, dtype: torch.dtype, tokens: int) -> None:
    check(_layer(name, bias=torch.bfloat16), tokens, 2, dtype)


@pytest.mark.parametrize("tokens", [*range(1, 8), 31, 40])
def test_every_count_of_tokens(tokens: int) -> None:
    check(Layer(ENCODINGS["int4-32"], hidden=32, inner=32), tokens, 3)


@pytest.mark.parametrize("tokens", [1, FEW, MANY])
def test_experts_that_come_in_waves(tokens: int, launched: list[str]) -> None:
    layer = Layer(ENCODINGS["int8"], hidden=64, inner=64)
    inputs = layer.inputs(tokens, 4)
    wanted = given(layer, inputs)
    assert len(launched) == 3
    launched.clear()
    assert torch.equal(given(layer, inputs, waves=2), wanted)
    assert len(launched) == 5
    launched.clear()
    assert torch.equal(experts_of(layer).run(*inputs, layer.table()), wanted)
    assert len(launched) == 3


@pytest.mark.parametrize("tokens", [FEW, MANY])
def test_experts_that_are_not_in_the_table_are_left_out(tokens: int) -> None:
    layer = Layer(ENCODINGS["int8"], hidden=64, inner=64)
    inputs, table = layer.inputs(tokens, 3), layer.table()
    table[1] = table[4] = -1
    found = experts_of(layer).run(*inputs, table)
    torch.testing.assert_close(found, layer.wanted(*inputs, without=(1, 4)), rtol=2e-5, atol=2e-5)
    assert not torch.allclose(found, layer.wanted(*inputs), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("tokens", [1, FEW, MANY])
def test_tokens_without_an_expert(tokens: int) -> None:
    layer = Layer(ENCODINGS["int8"], hidden=64, inner=64)
    hidden, index, weights = layer.inputs(tokens, 3)
    index.fill_(layer.count)
    step = experts_of(layer).start(hidden, index, layer.count)
    assert list(step.experts) == []
    step.put(layer.layout, [], [])
    assert torch.equal(step.sum(weights), torch.zeros_like(hidden))
    assert torch.equal(experts_of(layer).run(hidden, index, weights, layer.table()), torch.zeros_like(hidden))


def test_no_tokens() -> None:
    layer = Layer(ENCODINGS["int8"], hidden=64, inner=64)
    inputs = layer.inputs(0, 3, torch.bfloat16)
    assert given(layer, inputs).shape == experts_of(layer).run(*inputs, layer.table()).shape == (0, 64)


@pytest.mark.parametrize("tokens", [2, 30])
def test_a_token_that_chose_an_expert_twice(tokens: int) -> None:
    layer = Layer(ENCODINGS["int8"], hidden=64, inner=64)
    hidden, _, weights = layer.inputs(tokens, 3)
    inputs = hidden, torch.tensor([[2, 0, 2]]).repeat(tokens, 1), weights
    torch.testing.assert_close(given(layer, inputs), layer.wanted(*inputs), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("gating", [Gating("silu"), clamped(interleaved=True)])
@pytest.mark.parametrize("name", ENCODINGS)
def test_experts_in_ram(name: str, gating: Gating) -> None:
    for choices in (1, 5):
        check_in_ram(_layer(name, gating=gating, bias=torch.bfloat16), choices)


def test_a_token_that_chose_more_than_few_in_ram() -> None:
    check_in_ram(_layer("int8", count=24), 20)


def test_a_slot_is_read_when_it_is_multiplied_by() -> None:
    layer = Layer(ENCODINGS["int8"], hidden=64, inner=64)
    kernels, inputs = experts_of(layer), layer.inputs(3, 3)
    for _ in range(2):
        found = kernels.run(*inputs, layer.table())
        torch.testing.assert_close(found, layer.wanted(*inputs), rtol=2e-5, atol=2e-5)
        layer.fill()


def test_what_is_not_a_number_stays_with_its_token() -> None:
    layer = Layer(ENCODINGS["int4-32"], hidden=64, inner=64)
    for tokens in (FEW, MANY):
        hidden, index, weights = layer.inputs(tokens, 2)
        index = index % layer.count
        hidden[1, 5] = torch.nan
        found = given(layer, (hidden, index, weights))
        assert found[1].isnan().all() and found[0].isfinite().all()


def test_experts_of_several_layouts() -> None:
    layer, other = (Layer(ENCODINGS[name], hidden=64, inner=64) for name in ("int8", "int4-32"))
    assert layer.layout.size > other.layout.size
    kernels = experts_of(layer)
    kernels._layouts = {**kernels._layouts, **experts_of(other)._layouts}
    for expert in (1, 3):
        layer.slab[layer.slots[expert]][: other.layout.size].copy_(other.slab[other.slots[expert]])
        layer._numbers[expert] = other._numbers[expert]
    inputs = layer.inputs(5, 4)
    step = kernels.start(inputs[0], inputs[1], layer.count)
    for layout, wave in ((layer.layout, {0, 2, 4, 5}), (other.layout, {1, 3})):
        experts = [expert for expert in step.experts if expert in wave]
        step.put(layout, experts, [layer.slots[expert] for expert in experts])
    torch.testing.assert_close(step.sum(inputs[2]), layer.wanted(*inputs), rtol=2e-5, atol=2e-5)
