"""Formats that the native kernels multiply as their files hold them: the numbers are the format's."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from moe_local.checkpoint.encoding import Encoding
from moe_local.formats.registry import format_of, packable, packed_encoding
from moe_local.kernels import native
from moe_local.kernels.cpu import NATIVE, native_kind
from moe_local.kernels.matrix import bind, kernel_for

pytestmark = pytest.mark.skipif(native.missing() is not None, reason="the native kernels are not there")

CPU = torch.device("cpu")
SHAPE = (48, 512)
ROWS = 30
GGUF = {
    "Q4_0": (18, 32),
    "Q8_0": (34, 32),
    "Q4_K": (144, 256),
    "Q5_K": (176, 256),
    "Q6_K": (210, 256),
    "MXFP4": (17, 32),
}
HALVES = {"Q4_0": (0,), "Q8_0": (0,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "MXFP4": ()}
NAMES = ["mxfp4", "nvfp4", "nf4", "fp8", *GGUF]


def _made(name: str, shape: tuple[int, int] = SHAPE) -> tuple[Encoding, Mapping[str, Tensor]]:
    """Any matrix of a format: of GGUF's, any codes and scales of 6 or 8 bits, with halves near 0.003."""
    if name not in GGUF:
        torch.manual_seed(0)
        encoding = packed_encoding(name)
        return encoding, packable(encoding).encode(torch.randn(shape) / 30)
    size, columns = GGUF[name]
    random = np.random.default_rng(0)
    blocks = random.integers(0, 256, (shape[0], shape[1] // columns, size), dtype=np.uint8)
    for place in HALVES[name]:
        halves = (random.random(blocks.shape[:2]) * 0.01 - 0.002).astype(np.float16)
        blocks[..., place : place + 2] = halves[..., None].view(np.uint8)
    if name == "MXFP4":
        blocks[..., 0] = random.integers(100, 130, blocks.shape[:2])
    return Encoding("gguf", (("type", name),)), {"blocks": torch.from_numpy(blocks.reshape(shape[0], -1))}


def _rounded(x: Tensor, group: int) -> Tensor:
    wide = x.view(len(x), -1, group)
    scale = wide.abs().amax(2, keepdim=True) / 127
    return ((wide / scale.clamp(min=1e-30)).round() * scale).flatten(1)


def _error(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("name", NAMES)
def test_the_numbers_are_the_formats(name: str) -> None:
    encoding, arrays = _made(name)
    kind = native_kind(format_of(encoding), SHAPE)
    assert kernel_for(encoding, CPU, SHAPE) is NATIVE and kind is not None
    x = torch.randn(ROWS, SHAPE[1], dtype=torch.float64).float()
    weight = format_of(encoding).decode(arrays, SHAPE, torch.float32).double()
    assert _error(bind(encoding, arrays, SHAPE, exact=True)(x), x.double() @ weight.T) < 1e-6
    seen = x if name in ("nf4", "fp8") else _rounded(x, kind.group)
    assert _error(bind(encoding, arrays, SHAPE)(x), seen.double() @ weight.T) < 2e-4


@pytest.mark.parametrize("exact", [False, True], ids=["8-bit", "exact"])
@pytest.mark.parametrize("name", NAMES)
def test_a_row_alone_has_the_same_bits(name: str, exact: bool) -> None:
    encoding, arrays = _made(name)
    multiply = bind(encoding, arrays, SHAPE, exact=exact)
    x = torch.randn(ROWS, SHAPE[1]).bfloat16()
    assert torch.equal(multiply(x), torch.cat([multiply(row[None]) for row in x]))


@pytest.mark.parametrize("columns", [32, 64, 96, 160])
@pytest.mark.parametrize("name", ["mxfp4", "nvfp4"])
def test_scales_at_the_end_of_a_row(name: str, columns: int) -> None:
    """Four scales are read at once, and no byte beyond the array."""
    encoding, arrays = _made(name, (16, columns))
    arrays = {key: F.pad(array.view(torch.uint8), (0, 0)).clone().view(array.dtype) for key, array in arrays.items()}
    x = torch.randn(3, columns)
    weight = format_of(encoding).decode(arrays, (16, columns), torch.float32)
    assert _error(bind(encoding, arrays, (16, columns), exact=True)(x), x @ weight.T) < 1e-5


def test_interleaved_heads_of_gguf() -> None:
    _, arrays = _made("Q4_K")
    encoding = Encoding("gguf", (("type", "Q4_K"), ("rotary_heads", 3)))
    x = torch.randn(5, SHAPE[1])
    weight = format_of(encoding).decode(arrays, SHAPE, torch.float32)
    assert kernel_for(encoding, CPU, SHAPE) is NATIVE
    assert _error(bind(encoding, arrays, SHAPE, exact=True)(x), x @ weight.T) < 1e-5


@pytest.mark.parametrize(
    ("name", "shape"),
    [("mxfp4", (40, 64)), ("nf4", (48, 32)), ("nf4", (3, 64)), ("fp8", (48, 72)), ("Q4_K", (24, 256))],
)
def test_other_shapes_are_decoded(name: str, shape: tuple[int, int]) -> None:
    encoding, arrays = _made(name, shape)
    x = torch.randn(2, shape[1])
    assert kernel_for(encoding, CPU, shape) is not NATIVE
    assert (
        _error(bind(encoding, arrays, shape)(x), x @ format_of(encoding).decode(arrays, shape, torch.float32).T)
        < 1e-5
    )


def test_one_scale_for_all_of_fp8_is_decoded_where_it_is_no_float32() -> None:
    encoding, arrays = _made("fp8")
    arrays = {**arrays, "scale": arrays["scale"].bfloat16()}
    x = torch.randn(2, SHAPE[1])
    weight = format_of(encoding).decode(arrays, SHAPE, torch.float32)
    assert _error(bind(encoding, arrays, SHAPE)(x), x @ weight.T) < 1e-5
