"""bitsandbytes: 4-bit numbers of a table (nf4, fp4), or bytes with a scale a row (LLM.int8).

4 bits: `weight` [bytes, 1], two numbers a byte of the flattened matrix; `weight.absmax`, a scale for each block of
them; `weight.quant_state.bitsandbytes__nf4` (or fp4), the matrix's shape and block size as JSON. Scales that are
themselves quantised ("double quantisation") are U8, with `weight.nested_absmax`, `weight.nested_quant_map` [256], and
an offset in the JSON. 8 bits: `weight` I8 [out, in] and `SCB` F32 [out], what 127 means in each row.

Layers that the quantiser left alone, all fused experts among them, are plain tensors.

https://huggingface.co/docs/bitsandbytes, `QuantState` in bitsandbytes/functional.py
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from moe_local.checkpoint.encoding import Encoding
from moe_local.checkpoint.header import TensorEntry
from moe_local.checkpoint.record import EncodedTensor
from moe_local.checkpoint.schemes.checks import assert_none_left, expect, expect_matrix
from moe_local.errors import CheckpointError

_KINDS = ("nf4", "fp4")
_STATE = ".quant_state.bitsandbytes__"
_BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
_MOST = 4096  # bytes of a state that are read: real ones have about 170
_OFFSET = 32  # bytes at the end of a state that hold the offset: of one length, as all experts' parts must be
_NESTED = (".nested_absmax", ".nested_quant_map")


def bitsandbytes(config: Mapping[str, Any], tensors: Mapping[str, TensorEntry]) -> list[EncodedTensor]:
    """The matrices of 4 or 8 bits."""
    encoded = [_four_bits(tensors, *name.split(_STATE)) for name in tensors if _STATE in name]
    encoded += [_eight_bits(tensors, name) for name, entry in tensors.items() if entry.dtype == torch.int8]
    used = {part.name for tensor in encoded for part in tensor.parts.values()}
    assert_none_left(tensors, [".weight.absmax", ".SCB", *_NESTED], used)
    return encoded


def _eight_bits(tensors: Mapping[str, TensorEntry], name: str) -> EncodedTensor:
    weight = expect_matrix(tensors, name, [torch.int8])
    module = name.removesuffix(".weight")
    absmax = expect(tensors, f"{module}.SCB", [torch.float32], weight.shape[:1])
    beside = tuple(other for other in [f"{module}.weight_format"] if other in tensors)
    parts = {"weight": weight, "absmax": absmax}
    return EncodedTensor(name, weight.shape, Encoding("absmax-int8"), parts, beside=beside)


def _four_bits(tensors: Mapping[str, TensorEntry], name: str, kind: str) -> EncodedTensor:
    if kind not in _KINDS:
        raise ValueError(f"tensor {name!r} is of {kind!r}")
    entry = tensors[f"{name}{_STATE}{kind}"]
    state = _read_state(entry)
    out, width = state.shape
    blocks = -(-out * width // state.block)
    parts = {"weight": _packed(tensors, name, out * width)}
    options: list[tuple[str, int | str]] = [("block", state.block), ("table", kind)]
    if state.nested:
        options.append(("nested", state.nested))
        shape = (-(-blocks // state.nested),)
        parts["absmax"] = expect(tensors, f"{name}.absmax", [torch.uint8], (blocks,))
        parts["nested_absmax"] = expect(tensors, f"{name}.nested_absmax", [torch.float32], shape)
        parts["nested_map"] = expect(tensors, f"{name}.nested_quant_map", [torch.float32], (256,))
        last = entry.offset + entry.length - _OFFSET
        parts["offset"] = replace(entry, shape=(_OFFSET,), offset=last, length=_OFFSET)
    else:
        parts["absmax"] = expect(tensors, f"{name}.absmax", [torch.float32], (blocks,))
    others = (f"{name}.quant_map", entry.name)
    beside = tuple(other for other in others if other in tensors)
    return EncodedTensor(name, (out, width), Encoding("nf4", tuple(options)), parts, beside=beside)


def _packed(tensors: Mapping[str, TensorEntry], name: str, count: int) -> TensorEntry:
    """The bytes of `count` numbers, in whatever type they were stored as."""
    weight = tensors.get(name)
    if weight is None:
        raise ValueError(f"tensor {name!r} is missing")
    length = -(-count // 2)
    if weight.length != length or weight.shape[-1:] != (1,):
        raise ValueError(
            f"tensor {name!r} has shape {weight.shape} of {weight.dtype}, not {length} bytes in a column"
        )
    return replace(weight, dtype=torch.uint8, shape=(length,))


@dataclass(frozen=True, slots=True)
class _State:
    shape: tuple[int, int]  # [out, in]
    block: int
    nested: int  # scales that share one; 0 if they are not quantised


def _read_state(entry: TensorEntry) -> _State:
    """Reads the small tensor that describes a matrix. Raises ValueError naming it."""
    text = _read(entry)
    try:
        state = json.loads(text)
        shape, block, nested = state["shape"], state["blocksize"], state.get("nested_blocksize", 0)
        offset = state.get("nested_offset")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"tensor {entry.name!r} holds no description of a matrix") from error
    if not isinstance(shape, list) or len(shape) != 2 or not all(type(size) is int and size > 0 for size in shape):
        raise ValueError(f"tensor {entry.name!r} says that the shape is {shape!r}")
    if block not in _BLOCKS or type(nested) is not int or nested < 0:
        raise ValueError(f"tensor {entry.name!r} says that blocks are of {block!r} and {nested!r}")
    if nested and (not isinstance(offset, float) or not _ends_with(text, offset)):
        raise ValueError(f"tensor {entry.name!r} does not end with the offset")
    return _State((shape[0], shape[1]), block, nested)


def _ends_with(text: bytes, offset: float) -> bool:
    """Whether the last `_OFFSET` bytes have the offset, as the format reads it."""
    _, colon, number = text[-_OFFSET:].rpartition(b":")
    try:
        return len(text) >= _OFFSET and bool(colon) and float(number.rstrip(b" }")) == offset
    except ValueError:
        return False


def _read(entry: TensorEntry) -> bytes:
    if entry.dtype != torch.uint8 or entry.length > _MOST:
        raise ValueError(f"tensor {entry.name!r} is {entry.length} bytes of {entry.dtype}, not a short text")
    try:
        with entry.file.open("rb") as stream:
            stream.seek(entry.offset)
            return stream.read(entry.length)
    except OSError as error:
        raise CheckpointError(f"cannot read {entry.file}: {error.strerror}", remedy="check the disk") from error
