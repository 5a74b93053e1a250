"""nf4: the very bytes that bitsandbytes gives, and the very numbers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_local.checkpoint.encoding import Encoding
from moe_local.formats.nf4 import TABLES, Nf4
from moe_local.formats.registry import fits

functional = pytest.importorskip("bitsandbytes.functional")


@pytest.mark.parametrize("table", ["nf4", "fp4"])
def test_tables(table: str) -> None:
    assert torch.equal(torch.tensor(TABLES[table]), functional.get_4bit_type(table, device="cpu"))


@settings(max_examples=60, deadline=None)
@given(
    out=st.integers(1, 20),
    blocks=st.integers(1, 3),
    block=st.sampled_from([64, 128]),
    table=st.sampled_from(["nf4", "fp4"]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    magnitude=st.sampled_from([1e-4, 1.0, 1e4]),
    seed=st.integers(0, 1000),
)
def test_the_same_as_bitsandbytes(
    out: int, blocks: int, block: int, table: str, dtype: torch.dtype, magnitude: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = (torch.randn(out, blocks * block, generator=generator) * magnitude).to(dtype)
    weight[0, :block] = 0
    wanted, state = functional.quantize_4bit(weight, blocksize=block, quant_type=table)
    packed = Nf4(block, table)
    arrays = packed.encode(weight)
    assert torch.equal(arrays["weight"], wanted.flatten())
    assert torch.equal(arrays["absmax"], state.absmax)
    assert torch.equal(packed.decode(arrays, weight.shape, dtype), functional.dequantize_4bit(wanted, state))


@settings(max_examples=40, deadline=None)
@given(out=st.integers(1, 8), width=st.sampled_from([32, 64, 96]), seed=st.integers(0, 1000))
def test_numbers_come_back_within_half_a_step(out: int, width: int, seed: int) -> None:
    """Blocks may go on in the next row."""
    weight = torch.randn(2 * out, width, generator=torch.Generator().manual_seed(seed))
    packed = Nf4()
    back = packed.decode(packed.encode(weight), (2 * out, width), torch.float32)
    largest = weight.view(-1, 64).abs().amax(dim=1, keepdim=True).expand(-1, 64).reshape(weight.shape)
    widest = max(high - low for low, high in zip(TABLES["nf4"], TABLES["nf4"][1:], strict=False))
    assert ((back - weight).abs() <= largest * (widest / 2 + 1e-6)).all()


def test_what_cannot_be_packed() -> None:
    assert not fits(Encoding("nf4"), (3, 32))
    assert not fits(Encoding("nf4", (("nested", 256),)), (64, 64))
