"""Rows by one encoded matrix with the Triton kernels, interpreted, against decoding it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from moe_local.formats.registry import format_of, packable
from moe_local.kernels.triton_dense import TRITON
from tests.kernels.triton_layers import ENCODINGS

NAMES = [name for name in ENCODINGS if name not in ("bf16", "fp16", "fp32")]
RAGGED = {
    "int8": (51, 76),
    "fp8": (133, 76),
    "mxfp4": (37, 96),
    "nvfp4": (19, 48),
    "nf4": (24, 72),
    "int4-32": (48, 96),
}


def _by_both(name: str, shape: tuple[int, int], rows: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The product by the kernel, and by the decoded matrix in float32."""
    torch.manual_seed(0)
    form = format_of(ENCODINGS[name])
    arrays = packable(ENCODINGS[name]).encode(torch.randn(shape) / shape[1] ** 0.5)
    multiply = TRITON.bind(form, arrays, shape, False)
    assert multiply is not None
    x = torch.randn(rows, shape[1], dtype=dtype)
    return multiply(x), x.float() @ form.decode(arrays, shape, torch.float32).T


@pytest.mark.parametrize("rows", [0, 1, 3, 20])
@pytest.mark.parametrize("name", NAMES)
def test_every_format(name: str, rows: int) -> None:
    found, wanted = _by_both(name, (64, 128), rows, torch.float32)
    torch.testing.assert_close(found, wanted, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("rows", [2, 70])
@pytest.mark.parametrize("name", RAGGED)
def test_sizes_that_fill_no_tile(name: str, rows: int) -> None:
    found, wanted = _by_both(name, RAGGED[name], rows, torch.float32)
    torch.testing.assert_close(found, wanted, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("rows", [2, 20])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["int4-64", "int8"])
def test_half_precision(name: str, dtype: torch.dtype, rows: int) -> None:
    found, wanted = _by_both(name, (64, 128), rows, dtype)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), wanted, rtol=2e-2, atol=2e-2)


def test_every_8_bit_float() -> None:
    """Subnormal ones and what is not a number among them."""
    codes = torch.arange(256, dtype=torch.uint8)
    arrays = {"weight": codes.view(torch.float8_e4m3fn).view(256, 1).expand(256, 4).contiguous()}
    arrays["scale"] = torch.ones(256, 1)
    multiply = TRITON.bind(format_of(ENCODINGS["fp8-rows"]), arrays, (256, 4), False)
    assert multiply is not None
    found = multiply(torch.tensor([[1.0, 0.0, 0.0, 0.0]]))[0]
    wanted = arrays["weight"][:, 0].float()
    assert torch.equal(found.isnan(), wanted.isnan()) and torch.equal(found.nan_to_num(), wanted.nan_to_num())


@pytest.mark.parametrize("exponent", [0, 1, 127, 254])
def test_every_4_bit_float_at_the_ends_of_its_scale(exponent: int) -> None:
    codes = torch.arange(16, dtype=torch.uint8)
    blocks = torch.zeros(16, 1, 16, dtype=torch.uint8)
    blocks[:, 0, 0] = codes
    arrays = {"blocks": blocks, "scales": torch.full((16, 1), exponent, dtype=torch.uint8)}
    form = format_of(ENCODINGS["mxfp4"])
    multiply = TRITON.bind(form, arrays, (16, 32), False)
    assert multiply is not None
    found = multiply(torch.eye(1, 32))[0]
    assert torch.equal(found, form.decode(arrays, (16, 32), torch.float32)[:, 0])
