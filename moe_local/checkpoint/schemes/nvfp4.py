"""What checkpoints of nvfp4 share, whoever wrote them (see `moe_local.formats.nvfp4`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from moe_local.checkpoint.encoding import Encoding
from moe_local.checkpoint.header import TensorEntry
from moe_local.checkpoint.record import EncodedTensor
from moe_local.checkpoint.schemes.checks import expect

_BLOCK = 16  # numbers that share a scale


def nvfp4_matrix(
    tensors: Mapping[str, TensorEntry], packed: str, scale: str, whole: str, *, name: str, divides: bool = False
) -> EncodedTensor:
    """The matrix `name`, or one an expert, from the tensors of these names, checked against each other.

    `packed` U8 [(experts,) out, in / 2], `scale` F8_E4M3 [(experts,) out, in / 16], `whole` F32, one number or one an
    expert, that multiplies the scales or `divides` them.
    """
    weight = expect(tensors, packed, [torch.uint8])
    if len(weight.shape) not in (2, 3) or 0 in weight.shape or weight.shape[-1] % (_BLOCK // 2):
        raise ValueError(f"tensor {packed!r} has shape {weight.shape}, not [out, in / 2] of whole blocks of {_BLOCK}")
    *lead, out, half = weight.shape
    width = half * 2
    scales = expect(tensors, scale, [torch.float8_e4m3fn], (*lead, out, width // _BLOCK))
    one, each = [(), (1,), (1, 1)], [(*lead,), (*lead, 1), (*lead, 1, 1)]
    number = expect(tensors, whole, [torch.float32], *(each if lead else []), *one)
    shape = (*lead, 1) if number.shape in each else (1,)
    parts = {"weight": weight, "scale": scales, "whole": replace(number, shape=shape)}
    encoding = Encoding("nvfp4", (("divides", 1),) if divides else ())
    return EncodedTensor(name, (*lead, out, width), encoding, parts)
