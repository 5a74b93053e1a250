"""Tables by byte give what indexing does."""

from __future__ import annotations

import pytest
import torch

from moe_local.formats.fp8 import Fp8
from moe_local.formats.lookup import look_up, look_up_halves

EVERY = torch.arange(256, dtype=torch.uint8).view(8, 32)


def test_bytes() -> None:
    table = torch.randn(256)
    assert torch.equal(look_up(table, EVERY), table.view(8, 32))


@pytest.mark.parametrize("low_first", [True, False])
def test_halves(low_first: bool) -> None:
    table = torch.randn(16)
    low, high = table[(EVERY & 0xF).int()], table[(EVERY >> 4).int()]
    wanted = torch.stack([low, high] if low_first else [high, low], dim=-1).flatten(-2)
    assert torch.equal(look_up_halves(tuple(table.tolist()), EVERY, low_first=low_first), wanted)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_every_float8_is_what_torch_says(dtype: torch.dtype) -> None:
    weight = EVERY.view(dtype)
    decoded = Fp8().decode({"weight": weight, "scale": torch.ones(())}, (8, 32), torch.float32)
    torch.testing.assert_close(decoded, weight.to(torch.float32), rtol=0, atol=0, equal_nan=True)
