"""Which kernel multiplies, and that all that can say the same as decoding."""

from __future__ import annotations

import pytest
import torch

from moe_local.checkpoint.encoding import Encoding
from moe_local.formats.int4 import native_rows
from moe_local.formats.registry import packable, packable_names, packed_encoding
from moe_local.kernels.base import ANY_ROWS
from moe_local.kernels.cpu import INT4_ROWS, INT8_ROWS
from moe_local.kernels.decode import DECODE, matmul
from moe_local.kernels.matrix import KERNELS, bind, kernel_for

CPU = torch.device("cpu")
SHAPE = (128, 256)


@pytest.mark.parametrize("name", packable_names())
@pytest.mark.parametrize("rows", [1, INT8_ROWS, INT8_ROWS + 1, INT4_ROWS, INT4_ROWS + 1])
def test_every_count_of_rows_is_multiplied_as_decoded(name: str, rows: int) -> None:
    encoding = packed_encoding(name)
    form = packable(encoding)
    torch.manual_seed(0)
    arrays, x = form.encode(torch.randn(SHAPE)), torch.randn(rows, SHAPE[1], dtype=torch.bfloat16)
    wanted = matmul(x.float(), form.decode(arrays, SHAPE, torch.float32))
    found = bind(encoding, arrays, SHAPE)(x)
    assert found.dtype == x.dtype
    torch.testing.assert_close(found.float(), wanted, rtol=0.02, atol=0.02 * wanted.abs().max().item())
    assert rows <= kernel_for(encoding, CPU, rows).most_rows


def test_who_multiplies() -> None:
    assert kernel_for(Encoding("int8"), CPU, INT8_ROWS).name == "torch int8"
    assert kernel_for(Encoding("int8"), CPU, INT8_ROWS + 1).name == "int8 codes"
    assert kernel_for(Encoding("bf16"), CPU, 1) is DECODE
    other = Encoding("int4", (("group", 64), ("rows", 32 if native_rows() == 64 else 64)))
    assert kernel_for(other, CPU, 1) is DECODE
    assert kernel_for(packed_encoding("int4"), torch.device("cuda"), 1) is DECODE
    if native_rows():
        assert kernel_for(packed_encoding("int4"), CPU, INT4_ROWS).name == "torch int4"


def test_there_is_always_one() -> None:
    assert KERNELS[-1] is DECODE and DECODE.most_rows == ANY_ROWS
