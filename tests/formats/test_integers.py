"""int8 and int4: what they lose, how they lie in memory, and that kernels and decoding agree."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_local.checkpoint.encoding import Encoding
from moe_local.formats.base import Affine
from moe_local.formats.int4 import Int4
from moe_local.formats.int8 import Int8, Int8Rows
from moe_local.formats.registry import packable, packed_bytes, packed_encoding
from moe_local.kernels.matrix import bind

GROUPS = (32, 64, 128)
SCALES = st.floats(1e-6, 1e4)


def _matrix(out: int, width: int, seed: int = 0, scale: float = 0.02) -> torch.Tensor:
    return torch.randn(out, width, generator=torch.Generator().manual_seed(seed)) * scale


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(GROUPS), st.integers(1, 5), st.integers(0, 99), SCALES)
def test_int4_is_within_a_step(group: int, blocks: int, seed: int, scale: float) -> None:
    """No number is further off than one step of its group, and half of that but for the rounding of the scales."""
    weight = _matrix(16 * blocks, 256, seed, scale)
    scheme = Int4(group)
    decoded = scheme.decode(scheme.encode(weight), (16 * blocks, 256), torch.float32)
    grouped = weight.view(len(weight), -1, group)
    step = (grouped.amax(2) - grouped.amin(2)) / 15
    error = (decoded - weight).abs().view_as(grouped).amax(2)
    assert (error <= step + 1e-30).all()


def test_int4_of_constant_and_empty_groups() -> None:
    weight = torch.zeros(64, 64)
    weight[1] = 0.5
    scheme = Int4(32)
    assert torch.equal(scheme.decode(scheme.encode(weight), (64, 64), torch.float32), weight)


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("count", [1, 3, 70])
def test_int4_multiplies_as_it_decodes(group: int, count: int) -> None:
    weight, x = _matrix(128, 256), torch.randn(count, 256, dtype=torch.bfloat16)
    encoding = packed_encoding("int4", group)
    scheme = packable(encoding)
    arrays = scheme.encode(weight)
    wanted = x.float() @ scheme.decode(arrays, (128, 256), torch.float32).T
    got = bind(encoding, arrays, (128, 256))(x)
    assert got.dtype == x.dtype
    torch.testing.assert_close(got.float(), wanted, rtol=2**-6, atol=2**-6 * wanted.abs().max().item())


@pytest.mark.parametrize("group", GROUPS)
def test_where_int4_has_its_numbers(group: int) -> None:
    """Each code, scale and offset is at the byte that the layout says."""
    out, width = 48, 2 * group
    codes = torch.randint(0, 16, (out, width), dtype=torch.uint8)
    scales = torch.rand(out, 2).to(torch.bfloat16)
    zeros = torch.randint(0, 16, (out, 2)).float()
    blocks = Int4(group).hold(Affine(codes, scales.float(), zeros, bits=4))["blocks"]
    assert blocks.nbytes == packed_bytes("int4", (out, width), group)
    for row, column in ((0, 0), (17, 5), (31, group - 1), (47, group + 10)):
        part, at = blocks[row // 16, column // group], column % group
        byte = int(part[64 * (at // 8) + 4 * (row % 16) + at % 4])
        assert (byte >> 4 if at % 8 >= 4 else byte & 15) == codes[row, column]
        scale, offset = part[8 * group :].view(torch.bfloat16).view(2, 16)[:, row % 16]
        assert scale == scales[row, column // group]
        assert offset == ((8 - zeros) * scales.float()).to(torch.bfloat16)[row, column // group]


def test_int4_holds_the_integers_of_others() -> None:
    """Codes are kept; scales and zeros too where bf16 has them."""
    codes = torch.randint(0, 16, (64, 128), dtype=torch.uint8)
    scales = torch.rand(64, 4).to(torch.bfloat16).float()
    affine = Affine(codes, scales, torch.full((64, 4), 8.0), bits=4)
    scheme = Int4(32)
    arrays = scheme.hold(affine)
    wanted = ((codes.view(64, 4, 32).float() - 8) * scales[..., None]).flatten(1)
    assert torch.equal(scheme.decode(arrays, (64, 128), torch.float32), wanted)
    again = scheme.affine(arrays, (64, 128))
    assert torch.equal(again.codes, codes)
    assert torch.equal(again.scales, scales)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(0, 99), SCALES)
def test_int8_is_within_half_a_step(out: int, width: int, seed: int, scale: float) -> None:
    weight = _matrix(out, width, seed, scale)
    arrays = Int8().encode(weight)
    decoded = Int8().decode(arrays, (out, width), torch.float32)
    step = weight.abs().amax(1, keepdim=True) / 127
    assert ((decoded - weight).abs() <= step * 1.02 + 1e-30).all()
    assert arrays["blocks"].nbytes == packed_bytes("int8", (out, width))
    assert torch.equal(Int8Rows().decode(Int8Rows().encode(weight), (out, width), torch.float32), decoded)


@pytest.mark.parametrize("shape", [(96, 64), (50, 70), (1, 1)])
@pytest.mark.parametrize("count", [1, 5, 64])
def test_int8_multiplies_as_it_decodes(count: int, shape: tuple[int, int]) -> None:
    weight, x = _matrix(*shape), torch.randn(count, shape[1], dtype=torch.bfloat16)
    arrays = Int8().encode(weight)
    wanted = x.float() @ Int8().decode(arrays, shape, torch.float32).T
    got = bind(Encoding("int8"), arrays, shape)(x).float()
    torch.testing.assert_close(got, wanted, rtol=2**-6, atol=2**-6 * wanted.abs().max().item())


def test_where_int8_has_its_numbers() -> None:
    """Each code and scale is at the byte that the layout says; what fills up is zero."""
    weight = _matrix(20, 70)
    blocks = Int8().encode(weight)["blocks"]
    rows = Int8Rows().encode(weight)
    for row, column in ((0, 0), (15, 69), (16, 3), (19, 66)):
        code = blocks[row // 16].view(torch.int8)[64 * (column // 4) + 4 * (row % 16) + column % 4]
        assert code == rows["weight"][row, column]
    assert torch.equal(blocks[1, -64:].view(torch.float32)[:4], rows["scales"][16:].float())
    assert not blocks[1].view(-1, 16, 4)[:, 4:].any()
    assert not blocks[0, 64 * 18 : -64].any()
