"""What the Triton kernels are told of records, and which ones they leave to others. Needs no triton."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_local.checkpoint.encoding import Encoding
from moe_local.checkpoint.record import Layout, Projection
from moe_local.formats.base import Format, Shape
from moe_local.formats.registry import EMBEDDING, format_of, packable
from moe_local.kernels.gating import Gating
from moe_local.kernels.triton_experts import TiledPass, _Work, triton_experts
from moe_local.kernels.triton_layout import place
from moe_local.kernels.triton_matrix import Lying, reader_of, reads
from tests.kernels.triton_layers import ENCODINGS, Layer, experts_of

CPU = torch.device("cpu")
SILU = Gating("silu")


def _lying(form: Format, shape: Shape) -> dict[str, Lying]:
    arrays = form.encode(torch.randn(shape))  # type: ignore[attr-defined]
    return {name: Lying(array.dtype, tuple(array.shape), array.stride()) for name, array in arrays.items()}


@pytest.mark.parametrize("name", ENCODINGS)
def test_what_is_packed_is_read(name: str) -> None:
    form = packable(ENCODINGS[name])
    assert reads(form, (256, 128))
    assert reader_of(form, (256, 128), _lying(form, (256, 128))) is not None


def _changed(lying: Mapping[str, Lying], name: str, **changes: object) -> dict[str, Lying]:
    return {**lying, name: lying[name]._replace(**changes)}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "array", "changes"),
    [
        ("nf4", "absmax", {"dtype": torch.uint8}),
        ("nf4", "weight", {"strides": (2,)}),
        ("nvfp4", "scale", {"dtype": torch.float8_e5m2}),
        ("nvfp4", "whole", {"dtype": torch.bfloat16}),
        ("nvfp4", "whole", {"shape": (3,)}),
        ("fp8", "weight", {"dtype": torch.float8_e5m2}),
        ("fp8", "scale", {"dtype": torch.uint8}),
        ("fp8", "scale", {"shape": (2, 2), "strides": (2, 1)}),
        ("fp8-rows", "scale", {"shape": (3, 1), "strides": (1, 1)}),
        ("bf16", "weight", {"dtype": torch.float64}),
    ],
)
def test_arrays_that_lie_otherwise(name: str, array: str, changes: Mapping[str, object]) -> None:
    form = format_of(ENCODINGS[name])
    lying = _lying(form, (256, 128))
    assert reader_of(form, (256, 128), lying) is not None
    assert reader_of(form, (256, 128), _changed(lying, array, **changes)) is None


@pytest.mark.parametrize(
    ("encoding", "width"),
    [
        (Encoding("nf4", (("nested", 256),)), 128),
        (ENCODINGS["nf4"], 36),
        (ENCODINGS["int8"], 70),
        (ENCODINGS["fp8"], 70),
        (Encoding("fp8", (("block", 6),)), 128),
        (EMBEDDING, 128),
        (Encoding("gguf", (("type", "Q4_K"),)), 256),
    ],
)
def test_formats_and_shapes_that_are_not_read(encoding: Encoding, width: int) -> None:
    assert not reads(format_of(encoding), (128, width))


def test_a_number_for_all_of_a_matrix() -> None:
    form = format_of(ENCODINGS["fp8-rows"])
    one = _changed(_lying(form, (256, 128)), "scale", shape=(), strides=())
    assert (found := reader_of(form, (256, 128), one)) is not None and found.across == 0
    form = format_of(ENCODINGS["nvfp4"])
    whole = _changed(_lying(form, (256, 128)), "whole", shape=(), strides=())
    assert (found := reader_of(form, (256, 128), whole)) is not None and found.spec.scales == "one"
    del whole["whole"]
    assert (found := reader_of(form, (256, 128), whole)) is not None and found.spec.scales == ""


def _with(layout: Layout, name: str, projection: Projection) -> Layout:
    return Layout({**layout.projections, name: projection}, layout.size)


def test_projections_that_are_left_to_others() -> None:
    layout = Layer(ENCODINGS["int8"], hidden=64, inner=64, bias=torch.float32).layout
    up, down = layout.projections["gate_up_proj"], layout.projections["down_proj"]
    bias, order = up.bias, tuple(reversed(range(128)))
    assert place(layout, SILU) is not None and bias is not None
    assert place(_with(layout, "gate_up_proj", replace(up, order=order)), SILU) is None
    assert place(_with(layout, "gate_up_proj", replace(up, bias_order=order)), SILU) is None
    assert place(_with(layout, "gate_up_proj", replace(up, bias=replace(bias, dtype=torch.float64))), SILU) is None
    assert place(_with(layout, "gate_up_proj", replace(up, bias=replace(bias, strides=(2,)))), SILU) is None
    assert place(_with(layout, "down_proj", replace(down, matrices=down.matrices * 2)), SILU) is None
    assert place(layout, Gating("silu", gated=False)) is None  # as many outputs as down has inputs twice
    assert place(Layout({"down_proj": down}, layout.size), SILU) is None


def test_two_matrices() -> None:
    layout = Layer(ENCODINGS["int8"], hidden=64, inner=64, halves=True).layout
    up = layout.projections["gate_up_proj"]
    assert place(layout, SILU) is not None
    assert place(layout, Gating("silu", interleaved=True)) is None
    other = Layer(ENCODINGS["int4-64"], Gating("silu", gated=False), 64, 64).layout.projections["up_proj"].matrices[0]
    assert place(_with(layout, "gate_up_proj", replace(up, matrices=(up.matrices[0], other))), SILU) is None


def test_experts_on_a_cpu_are_left_to_others() -> None:
    layer = Layer(ENCODINGS["int8"], hidden=64, inner=64)
    assert triton_experts(layer.slab, [layer.layout], SILU) is None


def test_where_triton_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moe_local.kernels.triton_experts.usable", lambda device: True)
    layer, other = (Layer(ENCODINGS[name], hidden=64, inner=64) for name in ("int8", "int4-64"))
    unlike = Layer(ENCODINGS["int8"], hidden=64, inner=128).layout
    missing = Layout({}, 64)
    assert triton_experts(layer.slab, [layer.layout, other.layout], SILU) is not None
    assert triton_experts(layer.slab, [layer.layout], None) is None
    assert triton_experts(layer.slab, [layer.layout, unlike], SILU) is None
    assert triton_experts(layer.slab, [layer.layout, missing], SILU) is None


def test_a_table_says_nothing_of_layouts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moe_local.kernels.triton_experts.usable", lambda device: True)
    layer, other = (Layer(ENCODINGS[name], hidden=64, inner=64) for name in ("int8", "int4-64"))
    both = triton_experts(layer.slab, [layer.layout, other.layout], SILU)
    assert both is not None
    with pytest.raises(ValueError, match="several layouts"):
        both.run(*layer.inputs(2, 2), layer.table())


@settings(max_examples=60, deadline=None)
@given(st.integers(3, 70), st.integers(1, 4), st.integers(0, 999))
def test_tiles_from_a_table_are_those_of_a_pass(tokens: int, choices: int, seed: int) -> None:
    """Every known choice is in one tile of its expert's slot."""
    torch.manual_seed(seed)
    layer = Layer(ENCODINGS["int8"], hidden=16, inner=16)
    hidden, index, _ = layer.inputs(tokens, choices)
    work = _Work(hidden, index, layer.count, 16, 16, {})
    order, tiles = work.tiles_on_device(layer.table())
    step = TiledPass(experts_of(layer), work)
    found: dict[int, list[int]] = {}
    for slot, first, last in tiles.tolist():
        if slot >= 0 and first < last:
            found.setdefault(slot, []).extend(range(first, min(first + work.block, last)))
    assert found == {layer.slots[expert]: list(range(*step._spans[expert])) for expert in step.experts}
    flat = index.flatten()
    for expert in step.experts:
        assert (flat[order[slice(*step._spans[expert])]] == expert).all()
    assert sum(map(len, found.values())) == int((flat < layer.count).sum())
