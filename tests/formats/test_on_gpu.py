"""A GPU decodes what a CPU does, to the last bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from moe_local.checkpoint.encoding import Encoding
from moe_local.formats.base import Format, Packable
from moe_local.formats.registry import EMBEDDING, format_of
from moe_local.testing.pretend_cuda import can_pretend, pretend_cuda
from moe_local.testing.pretend_mps import pretend_mps

OUT, IN = 64, 96


def _words(*shape: int) -> Tensor:
    return torch.randint(-(2**31), 2**31, shape).int()


def _arrays(form: Format, name: str) -> dict[str, Tensor]:
    torch.manual_seed(0)
    if isinstance(form, Packable):
        return form.encode(torch.randn(OUT, IN))
    scales, zeros = torch.rand(OUT, 3), _words(OUT // 8, 3)
    return {
        "absmax-int8": {"weight": torch.randint(-128, 128, (OUT, IN)).to(torch.int8), "absmax": torch.rand(OUT)},
        "awq": {"qweight": _words(IN, OUT // 8), "qzeros": zeros.T.contiguous(), "scales": scales.T.contiguous()},
        "gptq": {"qweight": _words(IN // 8, OUT), "qzeros": zeros.T.contiguous(), "scales": scales.T.contiguous()},
        "signed-int8": {"weight": torch.randint(-128, 128, (OUT, IN)).to(torch.int8), "scale": scales},
        "packed": {"weight": _words(OUT, IN // 8), "scale": scales, "zero_point": zeros},
    }[name]


ENCODINGS = [
    Encoding("absmax-int8"),
    Encoding("awq", (("group", 32),)),
    Encoding("fp8"),
    Encoding("fp8", (("block", 32),)),
    Encoding("gptq", (("bits", 4), ("group", 32))),
    Encoding("int4", (("group", 32),)),
    Encoding("int8"),
    EMBEDDING,
    Encoding("nvfp4"),
    Encoding("signed-int8", (("group", 32),)),
    Encoding("mxfp4"),
    Encoding("nf4"),
    Encoding("packed", (("bits", 4), ("group", 32))),
]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("encoding", ENCODINGS, ids=str)
def test_devices_agree(encoding: Encoding, device: str) -> None:
    """(On a CPU it shows that the arrays are such as the format reads.)"""
    form = format_of(encoding)
    arrays = _arrays(form, encoding.format)
    wanted = form.decode(arrays, (OUT, IN), torch.bfloat16)
    moved = {name: array.to(device, copy=True) for name, array in arrays.items()}
    there = form.decode(moved, (OUT, IN), torch.bfloat16)
    assert there.device.type == device and there.isfinite().all()
    assert torch.equal(there.cpu(), wanted)


@pytest.mark.skipif(not can_pretend(), reason="torch has kernels of a device's own")
@pytest.mark.parametrize("pretended", [pretend_cuda, pretend_mps])
@pytest.mark.parametrize("encoding", ENCODINGS, ids=str)
def test_nobody_waits_for_a_decoded_matrix(encoding: Encoding, pretended: Callable[[], Any]) -> None:
    """Nor are tables copied to the device for each; a slot of it is bytes, whatever the matrix is of."""
    form = format_of(encoding)
    arrays = _arrays(form, encoding.format)
    wanted = form.decode(arrays, (OUT, IN), torch.bfloat16)
    with pretended() as gpu:
        moved = {name: array.view(torch.uint8).to(gpu.device).view(array.dtype) for name, array in arrays.items()}
        form.decode(moved, (OUT, IN), torch.bfloat16)
        with gpu.watch() as seen:
            there = form.decode(moved, (OUT, IN), torch.bfloat16)
        assert seen.syncs == 0, seen.told()
        assert torch.equal(there.cpu(), wanted)
