"""GGUF's block formats against the `gguf` package."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch

from moe_local.checkpoint.encoding import Encoding
from moe_local.checkpoint.gguf_header import block_sizes
from moe_local.formats.gguf import Gguf
from moe_local.kernels.matrix import bind

KINDS = [(name, elements, size) for name, elements, size in block_sizes().values()]


def _blocks(size: int, rows: int, count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (rows, count * size), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize(("name", "elements", "size"), KINDS, ids=[name for name, *_ in KINDS])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # random scales overflow
def test_decodes_as_the_package_does(name: str, elements: int, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    count = max(1, 64 // elements) * 2
    blocks = _blocks(size, 5, count)
    shape = (5, count * elements)
    wanted = torch.from_numpy(gguf.quants.dequantize(blocks.numpy(), gguf.GGMLQuantizationType[name]).copy())
    assert wanted.shape == shape
    for most in (1 << 20, 2 * shape[1]):  # whole, and in parts of two rows
        monkeypatch.setattr("moe_local.formats.gguf._ELEMENTS", most)
        decoded = Gguf(name).decode({"blocks": blocks}, shape, torch.float32)
        torch.testing.assert_close(decoded, wanted.float(), rtol=0, atol=0, equal_nan=True)


def test_every_type_that_people_use_is_there() -> None:
    assert {name for name, *_ in KINDS} >= {
        *("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "MXFP4"),
        *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
        *("IQ1_S", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS"),
    }


def test_multiplies() -> None:
    weight = torch.randn(6, 64, generator=torch.Generator().manual_seed(1))
    blocks = torch.from_numpy(gguf.quants.quantize(weight.numpy(), gguf.GGMLQuantizationType.Q8_0))
    x = torch.randn(3, 64)
    out = bind(Encoding("gguf", (("type", "Q8_0"),)), {"blocks": blocks}, (6, 64))(x)
    torch.testing.assert_close(out, x @ weight.T, rtol=0.05, atol=0.2)


def test_rotary_halves_are_put_back_side_by_side() -> None:
    """Two heads of four rows: interleaved 0 2 1 3 is 0 1 2 3 again."""
    rows = torch.tensor([0, 2, 1, 3, 4, 6, 5, 7], dtype=torch.float32)[:, None].expand(8, 32).contiguous()
    blocks = torch.from_numpy(rows.numpy().view(np.uint8))
    decoded = Gguf("F32", rotary_heads=2).decode({"blocks": blocks}, (8, 32), torch.bfloat16)
    assert decoded.dtype == torch.bfloat16
    assert decoded[:, 0].tolist() == list(range(8))
