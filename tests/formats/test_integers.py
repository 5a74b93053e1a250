"""int8 and int4: what they lose, that kernels and decoding agree, and the layout of torch's own kernel."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_local.checkpoint.encoding import Encoding
from moe_local.formats.base import Affine
from moe_local.formats.int4 import Int4, native_rows
from moe_local.formats.int8 import Int8
from moe_local.formats.registry import packable, packed_encoding
from moe_local.kernels.cpu import INT4_ROWS
from moe_local.kernels.matrix import bind
from tests.processes import python

GROUPS = (32, 64, 128)
SCALES = st.floats(1e-6, 1e4)


def _matrix(out: int, width: int, seed: int = 0, scale: float = 0.02) -> torch.Tensor:
    return torch.randn(out, width, generator=torch.Generator().manual_seed(seed)) * scale


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(GROUPS), st.sampled_from([32, 64]), st.integers(1, 3), st.integers(0, 99), SCALES)
def test_int4_is_within_a_step(group: int, rows: int, blocks: int, seed: int, scale: float) -> None:
    """No number is further off than one step of its group, and half of that but for the rounding of the scales."""
    weight = _matrix(64 * blocks, 256, seed, scale)
    scheme = Int4(group, rows)
    decoded = scheme.decode(scheme.encode(weight), weight.shape, torch.float32)
    grouped = weight.view(len(weight), -1, group)
    step = (grouped.amax(2) - grouped.amin(2)) / 15
    error = (decoded - weight).abs().view_as(grouped).amax(2)
    assert (error <= step + 1e-30).all()


def test_int4_of_constant_and_empty_groups() -> None:
    weight = torch.zeros(64, 64)
    weight[1] = 0.5
    scheme = Int4(32, 64)
    assert torch.equal(scheme.decode(scheme.encode(weight), weight.shape, torch.float32), weight)


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("count", [1, 3, INT4_ROWS, INT4_ROWS + 1])
def test_int4_multiplies_as_it_decodes(group: int, count: int) -> None:
    weight, x = _matrix(128, 256), torch.randn(count, 256, dtype=torch.bfloat16)
    encoding = packed_encoding("int4", group)
    scheme = packable(encoding)
    arrays = scheme.encode(weight)
    wanted = x.float() @ scheme.decode(arrays, weight.shape, torch.float32).T
    got = bind(encoding, arrays, weight.shape)(x)
    assert got.dtype == x.dtype
    torch.testing.assert_close(got.float(), wanted, rtol=2**-6, atol=2**-6 * wanted.abs().max().item())


@pytest.mark.skipif(not native_rows(), reason="this processor has no packed kernel")
def test_int4_is_in_the_layout_of_torchs_kernel() -> None:
    codes = torch.randint(0, 16, (192, 64), dtype=torch.uint8)
    scheme = Int4(32, native_rows())
    wanted = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.int(), 1)
    assert torch.equal(scheme._pack(codes).flatten(), wanted.flatten())
    assert torch.equal(scheme._unpack(scheme._pack(codes), codes.shape), codes)


@pytest.mark.parametrize("capability", ["avx2", "default"])
def test_int4_on_lesser_processors(capability: str) -> None:
    """The same test in a process that torch holds to less, also of records made for another processor."""
    code = (
        "import torch\n"
        "from moe_local.checkpoint.encoding import Encoding\n"
        "from moe_local.formats.int4 import Int4, native_rows\n"
        "from moe_local.kernels.matrix import bind\n"
        "weight, x = torch.randn(128, 64), torch.randn(2, 64).bfloat16()\n"
        "for rows in {native_rows() or 64, 32, 64}:\n"
        "    scheme = Int4(32, rows)\n"
        "    arrays = scheme.encode(weight)\n"
        "    wanted = x.float() @ scheme.decode(arrays, weight.shape, torch.float32).T\n"
        "    got = bind(Encoding('int4', (('group', 32), ('rows', rows))), arrays, weight.shape)(x).float()\n"
        "    torch.testing.assert_close(got, wanted, rtol=0.02, atol=0.2)\n"
    )
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability, "OMP_NUM_THREADS": "1"}
    python(code, env=environment)


def test_int4_holds_the_integers_of_others() -> None:
    """Codes are kept; scales and zeros too where bf16 has them."""
    codes = torch.randint(0, 16, (64, 128), dtype=torch.uint8)
    scales = torch.rand(64, 4).to(torch.bfloat16).float()
    affine = Affine(codes, scales, torch.full((64, 4), 8.0), bits=4)
    scheme = Int4(32, 64)
    arrays = scheme.hold(affine)
    wanted = ((codes.view(64, 4, 32).float() - 8) * scales[..., None]).flatten(1)
    assert torch.equal(scheme.decode(arrays, (64, 128), torch.float32), wanted)
    again = scheme.affine(arrays, (64, 128))
    assert torch.equal(again.codes, codes)
    assert torch.equal(again.scales, scales)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(0, 99), st.floats(1e-6, 1e4))
def test_int8_is_within_half_a_step(out: int, width: int, seed: int, scale: float) -> None:
    weight = _matrix(out, width, seed, scale)
    decoded = Int8().decode(Int8().encode(weight), weight.shape, torch.float32)
    step = weight.abs().amax(1, keepdim=True) / 127
    assert ((decoded - weight).abs() <= step * 1.02 + 1e-30).all()


@pytest.mark.parametrize("count", [1, 5, 64])
def test_int8_multiplies_as_it_decodes(count: int) -> None:
    weight, x = _matrix(96, 64), torch.randn(count, 64, dtype=torch.bfloat16)
    arrays = Int8().encode(weight)
    wanted = x.float() @ Int8().decode(arrays, weight.shape, torch.float32).T
    got = bind(Encoding("int8"), arrays, weight.shape)(x).float()
    torch.testing.assert_close(got, wanted, rtol=2**-6, atol=2**-6 * wanted.abs().max().item())
