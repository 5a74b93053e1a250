"""mlx: numbers of any width, one after the other from the lowest bit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moe_local.formats.mlx import BITS, Mlx, unpack_bits


@given(st.sampled_from(BITS), st.integers(1, 3), st.integers(1, 4), st.data())
def test_unpacking(bits: int, rows: int, words: int, data: st.DataObject) -> None:
    """Against the text of the bits."""
    codes = data.draw(st.lists(st.integers(0, 2**bits - 1), min_size=rows * 32 * words, max_size=rows * 32 * words))
    table = torch.tensor(codes).view(rows, -1)
    streams = ["".join(format(code, f"0{bits}b")[::-1] for code in row) for row in table.tolist()]
    packed = [[int(stream[at : at + 8][::-1], 2) for at in range(0, len(stream), 8)] for stream in streams]
    assert torch.equal(unpack_bits(torch.tensor(packed, dtype=torch.uint8), bits).long(), table)


@pytest.mark.parametrize("bits", BITS)
def test_a_number_is_its_code_times_the_scale_plus_the_bias(bits: int) -> None:
    packed = torch.full((1, 4 * bits), 255, dtype=torch.uint8)  # 32 codes, the largest
    arrays = {"weight": packed, "scales": torch.full((1, 1), 0.5), "biases": torch.full((1, 1), -3.0)}
    scheme = Mlx(bits, 32)
    weight = scheme.decode(arrays, (1, 32), torch.float32)
    assert weight.tolist() == [[0.5 * (2**bits - 1) - 3] * 32]
    affine = scheme.affine(arrays, (1, 32))
    assert affine is not None
    assert (affine.zeros.item(), affine.bits) == (6, bits)
    assert scheme.affine({**arrays, "scales": torch.zeros(1, 1)}, (1, 32)) is None
