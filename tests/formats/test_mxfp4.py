"""mxfp4: what encoding costs, and that it rounds as the specification says."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_local.checkpoint.encoding import Encoding
from moe_local.formats.mxfp4 import Mxfp4
from moe_local.formats.registry import fits


@settings(max_examples=60, deadline=None)
@given(
    out=st.integers(1, 8),
    blocks=st.integers(1, 3),
    seed=st.integers(0, 1000),
    exponent=st.integers(-100, 100),
)
def test_numbers_come_back_within_half_a_step(out: int, blocks: int, seed: int, exponent: int) -> None:
    weight = torch.randn(out, 32 * blocks, generator=torch.Generator().manual_seed(seed)) * 2.0**exponent
    packed = Mxfp4()
    arrays = packed.encode(weight)
    back = packed.decode(arrays, (out, 32 * blocks), torch.float32)
    largest = weight.unflatten(1, (-1, 32)).abs().amax(dim=-1, keepdim=True).expand(-1, -1, 32).flatten(1)
    # Half a step is a quarter of the magnitude at most, or an eighth of the largest's power of two.
    assert ((back - weight).abs() <= torch.maximum(weight.abs() / 4, largest / 16)).all()


def test_what_it_can_hold_comes_back_exactly() -> None:
    values = torch.tensor([0.0, 0.5, 1, 1.5, 2, 3, 4, 6])
    weight = torch.cat([values, -values] * 2).repeat(3, 1) * torch.tensor([[1.0], [2.0**-10], [2.0**20]])
    assert torch.equal(Mxfp4().decode(Mxfp4().encode(weight), (3, 32), torch.float32), weight)


def test_ties_go_to_even_and_nothing_overflows() -> None:
    weight = torch.zeros(1, 32)
    weight[0, :9] = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 7.9, -0.75])
    back = Mxfp4().decode(Mxfp4().encode(weight), (1, 32), torch.float32)
    assert back[0, :9].tolist() == [0, 1, 1, 2, 2, 4, 4, 6, -1]


def test_zeros_and_rows_that_do_not_divide() -> None:
    assert Mxfp4().decode(Mxfp4().encode(torch.zeros(2, 64)), (2, 64), torch.float32).count_nonzero() == 0
    assert not fits(Encoding("mxfp4"), (32, 48))
