"""Which kernel multiplies, and that all that can say the same as decoding."""

from __future__ import annotations

import os

import pytest
import torch

from moe_local.checkpoint.encoding import Encoding
from moe_local.formats.registry import EMBEDDING, packable, packable_names, packed_encoding
from moe_local.kernels import native
from moe_local.kernels.cpu import NATIVE
from moe_local.kernels.decode import DECODE, matmul
from moe_local.kernels.matrix import KERNELS, bind, kernel_for
from moe_local.kernels.triton_dense import TRITON
from moe_local.kernels.triton_probe import usable
from tests.processes import python

CPU = torch.device("cpu")
SHAPE = (128, 256)
TYPICAL = 16  # a dot of 256 normal numbers


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("name", packable_names())
@pytest.mark.parametrize("rows", [0, 1, 5, 70])
def test_every_count_of_rows_is_multiplied_as_decoded(name: str, rows: int, exact: bool) -> None:
    encoding = packed_encoding(name)
    form = packable(encoding)
    torch.manual_seed(0)
    arrays, x = form.encode(torch.randn(SHAPE)), torch.randn(rows, SHAPE[1], dtype=torch.bfloat16)
    wanted = matmul(x.float(), form.decode(arrays, SHAPE, torch.float32))
    found = bind(encoding, arrays, SHAPE, exact=exact)(x)
    assert found.dtype == x.dtype
    torch.testing.assert_close(found.float(), wanted, rtol=0.02, atol=0.05 * TYPICAL)


def test_who_multiplies() -> None:
    assert kernel_for(Encoding("bf16"), CPU, SHAPE) is DECODE
    gpu = torch.device("cuda")
    assert kernel_for(packed_encoding("int4"), gpu, SHAPE) is (TRITON if usable(gpu) else DECODE)
    assert kernel_for(EMBEDDING, CPU, SHAPE) is DECODE
    ours = DECODE if native.missing() else NATIVE
    assert kernel_for(Encoding("int8"), CPU, SHAPE) is kernel_for(packed_encoding("int4", 32), CPU, SHAPE) is ours


def test_there_is_always_one() -> None:
    assert KERNELS[-1] is DECODE


@pytest.mark.parametrize("processor", ["off", "portable"])
def test_what_the_environment_asks_for(processor: str) -> None:
    code = (
        "import torch\n"
        "from moe_local.checkpoint.encoding import Encoding\n"
        "from moe_local.kernels import native\n"
        "from moe_local.kernels.matrix import kernel_for\n"
        "off = native.missing() is not None\n"
        "kernel = kernel_for(Encoding('int8'), torch.device('cpu'), (16, 64))\n"
        "print('off' if off else native.machine().processor, kernel.name)\n"
    )
    if processor != "off" and native.missing():
        pytest.skip("the native kernels are not there")
    said = python(code, env=_environment(processor)).stdout.split()
    assert said == [processor, "decode" if processor == "off" else "native"]


@pytest.mark.skipif(native.missing() is not None, reason="the native kernels are not there")
def test_a_processor_that_this_is_not() -> None:
    code = (
        "from moe_local.errors import MoeLocalError\n"
        "from moe_local.kernels import native\n"
        "try:\n    native.machine()\nexcept MoeLocalError as error:\n    print(error, error.remedy)\n"
    )
    said = python(code, env=_environment("z80")).stdout
    assert "MOE_LOCAL_KERNELS=z80" in said and "portable or off" in said


def _environment(processor: str) -> dict[str, str]:
    return {**os.environ, native.VARIABLE: processor, "OMP_NUM_THREADS": "1"}
