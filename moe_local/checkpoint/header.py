"""The header of a safetensors file, checked before anything in it is believed.

Format: https://huggingface.co/docs/safetensors. Eight bytes of little-endian length, that many bytes of JSON,
then the tensors, which must cover the rest of the file without gaps or overlaps.
"""

from __future__ import annotations

import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeGuard

import torch

from moe_local.checkpoint.json_file import MOST as MOST_JSON
from moe_local.checkpoint.json_file import parse_json
from moe_local.checkpoint.regular import open_regular
from moe_local.errors import CheckpointError, UnsupportedError

# Bytes. The format allows 100 MB; the largest header that a published model could have, of 60 layers of 384 experts
# quantised into four tensors a matrix, all in one file, would have 40.
MAX_HEADER = MOST_JSON
_MOST_AXES = 16
MOST = 1 << 60  # of any axis, offset, or product of axes
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,31}")  # of a type
_AGAIN = "download it again, or check the disk"

DTYPES: dict[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "F32": torch.float32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
    "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
}


# Types that torch does not have as numbers of their own; those of the format, with their bits.
_BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a file: `length` bytes from absolute file position `offset`, row-major.

    A tensor of a type that is not known has that in `unknown`, and is bytes of no shape: nobody may need it.
    """

    name: str
    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    length: int
    unknown: str | None = None


def assert_known(entry: TensorEntry) -> None:
    """Raises UnsupportedError for a tensor that is needed and whose type is not known."""
    if entry.unknown is not None:
        raise UnsupportedError(
            f"tensor {entry.name!r} of {entry.file} is of type {entry.unknown}, which cannot be read",
            remedy="use the model's bf16, fp16 or fp32 weights",
        )


def read_header(file: Path) -> dict[str, TensorEntry]:
    """The tensors of a safetensors file by name. Reads the header only.

    Raises CheckpointError, naming the file, when any of it is not as the format demands.
    """
    try:
        with open_regular(file) as stream:
            size = os.fstat(stream.fileno()).st_size
            length = header_length(file, stream.read(8), size)
            text = stream.read(length)
    except OSError as error:
        raise CheckpointError(
            f"cannot read {file}: {error.strerror or error}", remedy="check the path and permissions"
        ) from error
    return parse_header(file, text, length, size)


def parse_header(file: Path, text: bytes, length: int, size: int) -> dict[str, TensorEntry]:
    """The tensors that a header of `length` bytes tells of, `text`, in a file of `size` bytes.

    Raises CheckpointError as `read_header` does.
    """
    if len(text) < length:
        _damaged(file, "is truncated inside its header")
    return _entries(file, _parse(file, text), start=8 + length, size=size)


def _damaged(file: Path, what: str) -> NoReturn:
    raise CheckpointError(f"{file} {what}", remedy=_AGAIN)


def header_length(file: Path, prefix: bytes, size: int) -> int:
    """Bytes of the JSON after the `prefix` of eight bytes. Raises CheckpointError where it cannot be."""
    if len(prefix) < 8:
        _damaged(file, f"is truncated: {size} bytes are too few for a safetensors file")
    (length,) = struct.unpack("<Q", prefix)
    if length > MAX_HEADER:
        _damaged(file, f"is not a safetensors file (its header would be {length} bytes)")
    if 8 + length > size:
        _damaged(file, f"is truncated: its header of {length} bytes is larger than the file of {size}")
    return int(length)


def _parse(file: Path, text: bytes) -> dict[str, Any]:
    if not text.startswith(b"{"):
        _damaged(file, "is not a safetensors file (its header is not JSON)")
    try:
        header = parse_json(text, _unique)
    except ValueError as error:
        raise CheckpointError(f"{file} has a damaged header ({error})", remedy=_AGAIN) from error
    return dict(header)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _entries(file: Path, header: dict[str, Any], *, start: int, size: int) -> dict[str, TensorEntry]:
    entries = {name: _entry(file, name, raw, start) for name, raw in header.items() if name != "__metadata__"}
    position = start
    for entry in sorted(entries.values(), key=lambda entry: (entry.offset, entry.length)):
        if entry.offset != position:
            kind = "overlaps the one before it" if entry.offset < position else "leaves a gap before it"
            _damaged(file, f"is damaged: tensor {entry.name!r} {kind}")
        position += entry.length
    if position > size:
        _damaged(file, f"is truncated: its tensors need {position} bytes and it has {size}")
    if position < size:
        _damaged(file, f"is damaged: {size - position} bytes follow its last tensor")
    return entries


def _entry(file: Path, name: str, raw: Any, start: int) -> TensorEntry:
    if not isinstance(raw, dict):
        _damaged(file, f"has a damaged header: tensor {name!r} is not described by an object")
    kind = raw.get("dtype")
    if not isinstance(kind, str) or not _NAME.fullmatch(kind):
        _damaged(file, f"has tensor {name!r} of unknown type {str(kind)[:40]!r}")
    shape, offsets = raw.get("shape"), raw.get("data_offsets")
    if not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        _damaged(file, f"has a damaged header: tensor {name!r} has no valid shape and offsets")
    begin, end = offsets
    dtype = DTYPES.get(kind)
    bits = _BITS.get(kind) if dtype is None else 8 * dtype.itemsize
    if bits is not None and 8 * (end - begin) != (needed := _product(shape) * bits):
        _damaged(
            file, f"is damaged: tensor {name!r} of shape {shape} needs {needed / 8:.15g} bytes, not {end - begin}"
        )
    if dtype is None:
        return TensorEntry(name, file, torch.uint8, (end - begin,), start + begin, end - begin, unknown=kind)
    return TensorEntry(name, file, dtype, tuple(shape), start + begin, end - begin)


def _product(shape: list[int]) -> int:
    """How many elements; soon more than any file has, however many and large the axes are."""
    if 0 in shape:
        return 0
    product = 1
    for count in shape:
        product *= count
        if product > MOST:
            break
    return product


def _naturals(value: object) -> TypeGuard[list[int]]:
    if not isinstance(value, list) or len(value) > _MOST_AXES:
        return False
    return all(type(item) is int and 0 <= item <= MOST for item in value)
