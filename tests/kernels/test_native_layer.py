"""A whole MoE layer by the native kernels against a plain loop; what is wrong is refused at their border."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_local.kernels import native
from tests.kernels.experts import Experts, activations

pytestmark = pytest.mark.skipif(native.missing() is not None, reason="the native kernels are not there")

BIASES = (None, torch.float32, torch.bfloat16)
HUGE = 2**62


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(activations()),
    st.sampled_from([("int4", 32), ("int4", 64), ("int8", 64)]),
    st.booleans(),
    st.booleans(),
    st.sampled_from(BIASES),
    st.integers(1, 40),
    st.integers(1, 4),
    st.integers(0, 999),
)
def test_a_layer_is_what_a_loop_gives(
    activation: str, form: tuple[str, int], gated: bool, turns: bool, bias: torch.dtype | None, tokens: int,
    choices: int, seed: int,
) -> None:  # fmt: skip
    torch.manual_seed(seed)
    gated = gated or activation == "clamped_swiglu"
    experts = Experts(activation, form[0], gated, gated and turns, bias, group=form[1])
    x, index, weights = experts.inputs(tokens, choices)
    wanted = experts.loop(x, index, weights)
    torch.testing.assert_close(experts.run(x, index, weights, exact=True), wanted, rtol=1e-4, atol=1e-4)
    apart = (experts.run(x, index, weights) - wanted).norm()
    assert apart <= 0.03 * wanted.norm() + 1e-6


def _without_addresses(changed: object) -> str:
    """A name that is the same in every process."""
    return re.sub(r"\d{12,}", "address", str(changed))


@pytest.mark.parametrize("inner", [80, 208])
def test_inner_columns_that_fill_no_group(inner: int) -> None:
    experts = Experts("silu", "int8", inner=inner, hidden=72)
    x, index, weights = experts.inputs(5, 3)
    torch.testing.assert_close(
        experts.run(x, index, weights, exact=True), experts.loop(x, index, weights), rtol=1e-4, atol=1e-4
    )


def test_half_precision() -> None:
    experts = Experts("silu", "int4", bias=torch.bfloat16)
    x, index, weights = experts.inputs(7, 3)
    x, weights = x.bfloat16(), weights.bfloat16()
    found = experts.run(x, index, weights)
    assert found.dtype == torch.bfloat16
    wanted = experts.loop(x, index, weights)
    assert (found.float() - wanted).norm() <= 0.03 * wanted.norm()


@pytest.mark.parametrize("tokens", [1, 3])
def test_an_expert_that_a_token_chose_twice(tokens: int) -> None:
    experts = Experts("silu", "int4")
    x, _, weights = experts.inputs(tokens, 3)
    index = torch.tensor([[2, 0, 2]]).repeat(tokens, 1)
    wanted = experts.loop(x, index, weights)
    torch.testing.assert_close(experts.run(x, index, weights, exact=True), wanted, rtol=1e-4, atol=1e-4)


def test_a_token_alone_and_among_others() -> None:
    experts = Experts("silu", "int4")
    x, index, weights = experts.inputs(33, 4)
    together = experts.run(x, index, weights)
    for token in (0, 16, 32):
        one = slice(token, token + 1)
        assert torch.equal(experts.run(x[one], index[one], weights[one])[0], together[token])


@pytest.mark.parametrize("activation", activations())
def test_extremes_through_activations(activation: str) -> None:
    """What is not a number stays that; the largest negative ones become nothing, as torch has it."""
    torch.manual_seed(0)
    experts = Experts(activation, "int8", gated=activation == "clamped_swiglu", count=1)
    index, weights = torch.zeros(3, 1, dtype=torch.int64), torch.ones(3, 1)
    x = torch.randn(3, experts.hidden)
    x[0, 5], x[1] = torch.nan, x[1] * 1e34
    found, wanted = experts.run(x, index, weights, exact=True), experts.loop(x, index, weights)
    assert found[0].isnan().all()
    torch.testing.assert_close(found[2], wanted[2], rtol=1e-4, atol=1e-4)
    if wanted[1].isfinite().all():
        assert (found[1] - wanted[1]).abs().max() <= 1e-4 * wanted[1].abs().max()


def test_who_was_chosen() -> None:
    from moe_local.kernels.native._native import Routing

    one = torch.tensor([[5, 2, 9, 0, -1]])
    assert Routing(one.data_ptr(), one.nbytes, 1, 5, 6).chosen == [5, 2, 0]
    two = torch.tensor([[5, 2], [0, 5]])
    assert Routing(two.data_ptr(), two.nbytes, 2, 2, 6).chosen == [0, 2, 5]
    none = torch.full((2, 2), 2**62)
    assert Routing(none.data_ptr(), none.nbytes, 2, 2, 6).chosen == []


def test_a_layer_that_nobody_chose_is_zeros() -> None:
    experts = Experts("silu", "int4")
    x, index, weights = experts.inputs(5, 2)
    assert not experts.run(x, torch.full_like(index, 6), weights).any()


# ---- The border


def _refused(call: Callable[..., object], given: dict[str, Any], changed: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        call(*{**given, **changed}.values())


X, Y = torch.zeros(3, 128), torch.zeros(3, 32)
MATRIX = torch.zeros(32 // 16 * 2 * (8 * 64 + 64), dtype=torch.uint8)
BIAS = torch.zeros(32)


def _dense() -> dict[str, Any]:
    return {
        "machine": native.machine(), "kind": "int4", "out": 32, "in": 128, "group": 64, "scale_rows": 1,
        "scale_columns": 1, "exact": False, "matrix": MATRIX.data_ptr(), "matrix_bytes": MATRIX.nbytes,
        "scales": 0, "scales_bytes": 0, "whole": 0, "whole_bytes": 0,
        "bias": BIAS.data_ptr(), "bias_bytes": BIAS.nbytes,
        "rows": 3, "x": X.data_ptr(), "x_bytes": X.nbytes, "y": Y.data_ptr(), "y_bytes": Y.nbytes, "type": 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    "changed",
    [
        {"kind": "int3"}, {"kind": ""}, {"out": 0}, {"out": -16}, {"out": 33}, {"out": 48}, {"out": 2**30}, {"in": 0},
        {"in": 100}, {"in": -128}, {"in": 2**31 - 64}, {"in": 192}, {"group": 0}, {"group": -64}, {"group": 16},
        {"group": 256}, {"matrix": 0}, {"matrix": MATRIX.data_ptr() + 2}, {"matrix_bytes": MATRIX.nbytes - 1},
        {"matrix_bytes": -1}, {"matrix_bytes": -HUGE}, {"bias": BIAS.data_ptr() + 1}, {"bias_bytes": 127},
        {"bias_bytes": -HUGE}, {"rows": 0}, {"rows": -1}, {"rows": 4}, {"rows": HUGE}, {"rows": 2**32 + 3}, {"x": 0},
        {"x": X.data_ptr() + 1}, {"x_bytes": X.nbytes - 1}, {"x_bytes": -1}, {"y": 0}, {"y": Y.data_ptr() + 2},
        {"y_bytes": Y.nbytes - 1}, {"type": 2}, {"type": -1}, {"kind": "int8", "group": 32},
        {"kind": "int8", "matrix_bytes": MATRIX.nbytes}, {"kind": "mxfp4", "group": 32},
        {"kind": "nvfp4", "group": 16, "scales": MATRIX.data_ptr(), "scales_bytes": 256},
        {"kind": "nf4", "scale_columns": 64}, {"kind": "nf4", "scale_columns": 32, "scales": BIAS.data_ptr()},
        {"kind": "nf4", "scale_columns": 64, "scales": BIAS.data_ptr(), "scales_bytes": 64 * 4 - 1},
        {"kind": "nf4", "scale_columns": 64, "scale_rows": 0, "scales": BIAS.data_ptr(), "scales_bytes": 256},
        {"kind": "q4_k", "group": 32}, {"kind": "q6_k", "group": 32}, {"kind": "q8_0", "group": 32},
    ],
    ids=_without_addresses,
)  # fmt: skip
def test_a_matrix_that_is_not_there(changed: dict[str, Any]) -> None:
    from moe_local.kernels.native._native import multiply_dense

    multiply_dense(*_dense().values())
    _refused(multiply_dense, _dense(), changed)


@pytest.mark.parametrize("name", ["out", "in", "group", "type"])
def test_numbers_that_no_integer_holds(name: str) -> None:
    from moe_local.kernels.native._native import multiply_dense

    for number in (2**31, 2**63, 2**64, -(2**31) - 1, -(2**70)):
        with pytest.raises((TypeError, ValueError)):
            multiply_dense(*{**_dense(), name: number}.values())


EXPERTS = Experts("silu", "int4", count=3)
TOKENS, INDEX, WEIGHTS = EXPERTS.inputs(4, 2)
OUTPUTS, OUT = torch.zeros(8, EXPERTS.hidden), torch.zeros(4, EXPERTS.hidden)


def _routing(**changed: int) -> Any:
    from moe_local.kernels.native._native import Routing

    given = {"address": INDEX.data_ptr(), "bytes": INDEX.nbytes, "tokens": 4, "choices": 2, "experts": 3}
    return Routing(**{**given, **changed})


@pytest.mark.parametrize(
    "changed",
    [
        {"address": 0}, {"address": INDEX.data_ptr() + 4}, {"bytes": INDEX.nbytes - 1}, {"bytes": -1}, {"tokens": 0},
        {"tokens": -1}, {"tokens": HUGE}, {"tokens": 2**32 + 4}, {"choices": 0}, {"choices": 257}, {"choices": HUGE},
        {"experts": 0}, {"experts": -1}, {"experts": HUGE},
    ],
    ids=_without_addresses,
)  # fmt: skip
def test_a_routing_that_is_none(changed: dict[str, int]) -> None:
    with pytest.raises(ValueError):
        _routing(**changed)


def _run() -> dict[str, Any]:
    return {
        "machine": native.machine(), "layout": EXPERTS.layout(), "routing": _routing(), "exact": False,
        "chosen": [0, 2], "records": [EXPERTS.records[0].data_ptr(), EXPERTS.records[2].data_ptr()],
        "record_bytes": EXPERTS.records[0].nbytes, "x": TOKENS.data_ptr(), "x_bytes": TOKENS.nbytes, "x_type": 0,
        "outputs": OUTPUTS.data_ptr(), "outputs_bytes": OUTPUTS.nbytes, "outputs_type": 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    "changed",
    [
        {"chosen": [0]}, {"chosen": [0, 0]}, {"chosen": [0, 3]}, {"chosen": [-1, 0]}, {"records": [0, 0]},
        {"records": [EXPERTS.records[0].data_ptr() + 2] * 2}, {"record_bytes": EXPERTS.records[0].nbytes - 1},
        {"record_bytes": -HUGE}, {"x": 0}, {"x": TOKENS.data_ptr() + 2}, {"x_bytes": TOKENS.nbytes - 1},
        {"x_type": 7}, {"outputs": 0}, {"outputs_bytes": OUTPUTS.nbytes - 1}, {"outputs_bytes": -1},
        {"outputs_type": -1},
    ],
    ids=_without_addresses,
)  # fmt: skip
def test_experts_that_are_not_there(changed: dict[str, Any]) -> None:
    from moe_local.kernels.native._native import run_experts

    run_experts(*_run().values())
    _refused(run_experts, _run(), changed)


def _sum() -> dict[str, Any]:
    return {
        "machine": native.machine(), "routing": _routing(), "columns": EXPERTS.hidden, "outputs": OUTPUTS.data_ptr(),
        "outputs_bytes": OUTPUTS.nbytes, "weights": WEIGHTS.data_ptr(), "weights_bytes": WEIGHTS.nbytes,
        "weights_type": 0, "out": OUT.data_ptr(), "out_bytes": OUT.nbytes, "type": 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    "changed",
    [
        {"columns": 0}, {"columns": -1}, {"columns": EXPERTS.hidden + 1}, {"columns": HUGE}, {"outputs": 0},
        {"outputs_bytes": OUTPUTS.nbytes - 1}, {"weights": 0}, {"weights": WEIGHTS.data_ptr() + 1},
        {"weights_bytes": WEIGHTS.nbytes - 1}, {"weights_type": 3}, {"out": 0}, {"out": OUT.data_ptr() + 1},
        {"out_bytes": OUT.nbytes - 1}, {"type": 9},
    ],
    ids=_without_addresses,
)  # fmt: skip
def test_sums_that_do_not_fit(changed: dict[str, Any]) -> None:
    from moe_local.kernels.native._native import sum_choices

    sum_choices(*_sum().values())
    _refused(sum_choices, _sum(), changed)


@pytest.mark.parametrize(
    "changed",
    [
        {"kind": "int5"}, {"out": 0}, {"width": 2**30}, {"group": 48}, {"places": [[-4, -1, -1]]},
        {"places": [[2, -1, -1]]}, {"places": [[HUGE, -1, -1]]}, {"places": [[4, -1, -1]]}, {"places": []},
        {"places": [[0]]}, {"places": [[0, -1, -1]] * 3}, {"kind": "mxfp4", "group": 32},
        {"kind": "mxfp4", "group": 32, "places": [[0, MATRIX.nbytes - 64, -1]]},
        {"size": 0}, {"size": -HUGE}, {"bias_offset": HUGE}, {"bias_offset": MATRIX.nbytes - 4},
        {"bias_offset": 0, "bias_type": 2},
    ],
    ids=_without_addresses,
)  # fmt: skip
def test_a_projection_beyond_its_record(changed: dict[str, Any]) -> None:
    from moe_local.kernels.native._native import Projection

    given: dict[str, Any] = {
        "kind": "int4", "out": 32, "width": 128, "group": 64, "scale_rows": 1, "scale_columns": 1,
        "places": [[0, -1, -1]], "bias_offset": -1, "bias_type": 0,
        "size": MATRIX.nbytes,
    }  # fmt: skip
    Projection(**given)
    with pytest.raises(ValueError):
        Projection(**{**given, **changed})


@pytest.mark.parametrize(
    "changed", [{"activation": "swish"}, {"gated": False}, {"gated": False, "interleaved": True}], ids=str
)
def test_a_layout_that_does_not_go_together(changed: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        EXPERTS.layout(**changed)


def test_clamped_swiglu_needs_a_gate() -> None:
    with pytest.raises(ValueError, match="clamped_swiglu"):
        Experts("relu", "int4", gated=False, count=1).layout(activation="clamped_swiglu")


@pytest.mark.parametrize("given", [(0, None), (-1, None), (257, None), (1, "z80"), (1, "")])
def test_a_machine_that_is_none(given: tuple[int, str | None]) -> None:
    from moe_local.kernels.native._native import Machine

    with pytest.raises(ValueError):
        Machine(*given)
