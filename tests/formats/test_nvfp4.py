"""nvfp4: what numbers mean, and that matrices of it are put together as they are."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from moe_local.formats.nvfp4 import BLOCK, Nvfp4


def test_by_hand() -> None:
    """Codes 0 to 15 are 0 to 6 and -0 to -6; a scale of 2 and 0.5 for all are 1."""
    codes = torch.arange(16, dtype=torch.uint8)
    weight = (codes[::2] | codes[1::2] << 4)[None]
    arrays = {"weight": weight, "scale": torch.full((1, 1), 2.0).to(torch.float8_e4m3fn), "whole": torch.tensor(0.5)}
    values = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    assert Nvfp4().decode(arrays, (1, 16), torch.float32)[0].tolist() == values + [-value for value in values]
    divided = {**arrays, "whole": torch.tensor([2.0])}
    assert Nvfp4(divides=1).decode(divided, (1, 16), torch.float32)[0].tolist()[1] == 0.5


@given(st.integers(0, 2**31), st.integers(1, 5), st.integers(1, 4), st.sampled_from([0.0, 1e-20, 1.0, 1e6]))
def test_encoding_is_near(seed: int, rows: int, blocks: int, size: float) -> None:
    """No number is further away than half the widest step and what rounding a scale makes of the largest."""
    weight = torch.randn(rows, blocks * BLOCK, generator=torch.Generator().manual_seed(seed)) * size
    for divides in (0, 1):
        scheme = Nvfp4(divides)
        back = scheme.decode(scheme.encode(weight), (rows, blocks * BLOCK), torch.float32)
        largest = weight.view(rows, -1, BLOCK).abs().amax(-1, keepdim=True)
        bound = largest / 4 + weight.abs().max() / 448 / 8
        assert ((back - weight).view(rows, -1, BLOCK).abs() <= bound).all()


def test_merging_loses_nothing() -> None:
    first, second = torch.randn(3, 32), torch.randn(2, 32) * 100
    scheme = Nvfp4()
    arrays = [scheme.encode(first), scheme.encode(second)]
    arrays[1]["whole"] = arrays[1]["whole"][:1]  # as checkpoints have it
    merged = scheme.merge(arrays, None)
    specs = scheme.encode(torch.empty(5, 32, device="meta"))
    assert {name: (array.shape, array.dtype) for name, array in merged.items()} == {
        name: (array.shape, array.dtype) for name, array in specs.items()
    }
    apart = [scheme.decode(part, (rows, 32), torch.float32) for part, rows in zip(arrays, (3, 2), strict=True)]
    assert torch.equal(scheme.decode(merged, (5, 32), torch.float32), torch.cat(apart))
    order = [4, 0, 3, 1, 2]
    turned = scheme.merge(arrays, order)
    assert torch.equal(scheme.decode(turned, (5, 32), torch.float32), torch.cat(apart)[order])
