"""fp8: what encoding costs, and that decoding is a product of float32."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_local.checkpoint.encoding import Encoding
from moe_local.formats.base import Packable
from moe_local.formats.fp8 import Fp8
from moe_local.formats.registry import format_of


@settings(max_examples=60, deadline=None)
@given(
    out=st.integers(1, 40),
    width=st.integers(1, 40),
    block=st.sampled_from([None, 1, 16, 128]),
    seed=st.integers(0, 1000),
    magnitude=st.sampled_from([1e-6, 1.0, 1e6]),
)
def test_numbers_come_back_within_half_a_step(
    out: int, width: int, block: int | None, seed: int, magnitude: float
) -> None:
    weight = torch.randn(out, width, generator=torch.Generator().manual_seed(seed)) * magnitude
    packed = Fp8(block)
    arrays = packed.encode(weight)
    assert arrays["weight"].dtype == torch.float8_e4m3fn
    back = packed.decode(arrays, (out, width), torch.float32)
    # Three bits of fraction; below the smallest normal number, 2**-6, steps are of 2**-9.
    scale = packed._spread(arrays["scale"], weight.shape)
    assert ((back - weight).abs() <= torch.maximum(weight.abs() * 2**-4, scale * 2**-10) * (1 + 1e-5)).all()


def test_zeros_stay_zeros() -> None:
    packed = format_of(Encoding("fp8", (("block", 128),)))
    assert isinstance(packed, Packable)
    arrays = packed.encode(torch.zeros(130, 20))
    assert arrays["scale"].shape == (2, 1)
    assert packed.decode(arrays, (130, 20), torch.bfloat16).count_nonzero() == 0


@pytest.mark.parametrize("scale", [torch.tensor([130], dtype=torch.uint8), torch.tensor(8.0), torch.tensor([[8.0]])])
def test_scales_of_any_type(scale: torch.Tensor) -> None:
    arrays = {"weight": torch.tensor([[1.5, -2.0]]).to(torch.float8_e5m2), "scale": scale}
    assert Fp8().decode(arrays, (1, 2), torch.float32).tolist() == [[12.0, -16.0]]


@pytest.mark.parametrize(("block", "scales"), [(None, ()), (None, (4, 1)), (2, (2, 4))])
def test_matrices_are_held_as_they_are(block: int | None, scales: tuple[int, ...]) -> None:
    """Whatever their scales: encoding the numbers again would choose others."""
    scheme = Fp8(block)
    parts = [
        {"weight": torch.randn(4, 8).to(torch.float8_e4m3fn), "scale": torch.rand(scales).bfloat16() + 1}
        for _ in "ab"
    ]
    merged = scheme.merge(parts, None)
    assert merged is not None
    specs = scheme.encode(torch.empty(8, 8, device="meta"))
    assert {n: (a.shape, a.dtype) for n, a in merged.items()} == {n: (a.shape, a.dtype) for n, a in specs.items()}
    wanted = torch.cat([scheme.decode(part, (4, 8), torch.float32) for part in parts])
    assert torch.equal(scheme.decode(merged, (8, 8), torch.float32), wanted)
    order = [7, 0, 1, 2, 3, 4, 5, 6]
    turned = scheme.merge(parts, order)
    assert (turned is None) == (block is not None)
    assert turned is None or torch.equal(scheme.decode(turned, (8, 8), torch.float32), wanted[order])
