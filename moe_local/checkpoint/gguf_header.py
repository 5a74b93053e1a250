"""The header of a GGUF file, checked before anything in it is believed.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Magic, version and two counts; then metadata (a
key, a type and a value each); then each tensor's name, dimensions, type and offset; then, aligned, the tensors.
Names and sizes of the types of tensors come from the `gguf` package.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from moe_local.checkpoint.regular import open_regular
from moe_local.errors import CheckpointError, UnsupportedError

MAX_HEADER = 64_000_000  # bytes; the vocabulary of a large model takes about ten million
_PIECE = 1 << 20  # bytes read at once
_MOST_ENTRIES = 1 << 12  # of metadata; a file has about fifty
_MOST_TENSORS = 1 << 18  # with every projection of every expert for itself, the largest models have about 70,000
_AGAIN = "download it again, or check the disk"
_VERSIONS = (2, 3)
_MOST_DIMENSIONS = 4  # ggml's own limit
_LONGEST_LIST = 1 << 12  # longer ones are the vocabulary's, which are not read here
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor: rows of blocks, or of numbers where the `type` is F32, F16 or BF16. `shape` is in torch's order."""

    name: str
    file: Path
    type: str
    shape: tuple[int, ...]
    offset: int  # in the file
    length: int  # bytes


@dataclass(frozen=True)
class GgufHeader:
    """Metadata by key, without arrays of strings and other long ones, and tensors by name."""

    file: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]


@cache
def block_sizes() -> dict[int, tuple[str, int, int]]:
    """Types that can be decoded, by number: name, elements of a block, bytes of a block.

    Raises UnsupportedError where the package that knows them is not installed.
    """
    try:
        import gguf
        import numpy as np
    except ImportError as error:
        raise UnsupportedError(
            "GGUF files need the package 'gguf', which is not installed", remedy="pip install 'moe-local[gguf]'"
        ) from error
    found = {}
    for kind, (elements, size) in gguf.GGML_QUANT_SIZES.items():
        try:
            gguf.quants.dequantize(np.zeros((1, size), dtype=np.uint8), kind)
        except NotImplementedError:
            continue
        found[int(kind)] = (kind.name, elements, size)
    return found


def read_gguf_header(file: Path) -> GgufHeader:
    """Reads the header only. Raises CheckpointError, naming the file, when any of it is not as the format demands."""
    block_sizes()
    try:
        with open_regular(file) as stream:
            return _parse(_Cursor(file, stream))
    except OSError as error:
        raise CheckpointError(
            f"cannot read {file}: {error.strerror or error}", remedy="check the path and permissions"
        ) from error


def metadata_alone(file: Path) -> bytes:
    """The file's metadata as a GGUF file without tensors. Raises CheckpointError."""
    with open_regular(file) as stream:
        cursor = _Cursor(file, stream)
        _parse(cursor)
    return cursor.metadata_alone()


def _damaged(file: Path, what: str) -> NoReturn:
    raise CheckpointError(f"{file} {what}", remedy=_AGAIN)


class _Cursor:
    """A place in a file's header; nothing is read from beyond its end.

    The file is not mapped: where it is cut while it is read, a read comes back short and a map ends the process.
    """

    def __init__(self, file: Path, stream: BinaryIO) -> None:
        self.file = file
        self.size = os.fstat(stream.fileno()).st_size
        self.at = 0
        self.end_of_metadata = 0
        self._stream = stream
        self._data = bytearray()  # from the file's beginning

    def metadata_alone(self) -> bytes:
        version, _, entries = struct.unpack_from("<IQQ", self._data, 4)
        return struct.pack("<4sIQQ", b"GGUF", version, 0, entries) + bytes(self._data[24 : self.end_of_metadata])

    def skip(self, count: int) -> int:
        """Moves on by `count` bytes; returns where they begin."""
        at, self.at = self.at, self.at + count
        if self.at > self.size:
            _damaged(self.file, "is truncated inside its header")
        if self.at > MAX_HEADER:
            _damaged(self.file, f"is damaged: its header would be larger than {MAX_HEADER} bytes")
        while len(self._data) < self.at:
            piece = self._stream.read(max(_PIECE, self.at - len(self._data)))
            if not piece:
                _damaged(self.file, "is truncated inside its header")
            self._data += piece
        return at

    def take(self, form: str) -> tuple[Any, ...]:
        layout = struct.Struct(f"<{form}")
        return layout.unpack_from(self._data, self.skip(layout.size))

    def string(self) -> str:
        (length,) = self.take("Q")
        at = self.skip(length)
        try:
            return self._data[at : at + length].decode("utf-8")
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{self.file} has a damaged header ({error})", remedy=_AGAIN) from error

    def value(self, kind: int, depth: int = 0) -> Any:
        """A value of metadata; None for an array that is not kept."""
        if kind in _SCALARS:
            return self.take(_SCALARS[kind])[0]
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY or depth > 4:
            _damaged(self.file, f"has metadata of an unknown type {kind}")
        element, count = self.take("IQ")
        if element in _SCALARS:
            if count > _LONGEST_LIST:
                self.skip(count * struct.calcsize(_SCALARS[element]))
                return None
            return list(self.take(f"{count}{_SCALARS[element]}"))
        for _ in range(count):  # each takes at least 8 bytes of a header that is bounded
            if element == _STRING:
                self.skip(self.take("Q")[0])
            else:
                self.value(element, depth + 1)
        return None


def _parse(cursor: _Cursor) -> GgufHeader:
    file = cursor.file
    if cursor.size < 24:
        _damaged(file, f"is truncated: {cursor.size} bytes are too few for a GGUF file")
    magic, version = cursor.take("4sI")
    if magic != b"GGUF":
        _damaged(file, "is not a GGUF file")
    if version not in _VERSIONS:
        raise UnsupportedError(
            f"{file} is GGUF of version {version}, or big-endian; versions 2 and 3 can be read",
            remedy="use a newer conversion of the model",
        )
    tensors, entries = cursor.take("QQ")
    if cursor.at + 12 * entries + 25 * tensors > cursor.size:  # what they take at least
        _damaged(file, "is truncated inside its header")
    if entries > _MOST_ENTRIES or tensors > _MOST_TENSORS:
        _damaged(file, f"is damaged: it would have {entries} entries of metadata and {tensors} tensors")
    metadata: dict[str, Any] = {}
    for _ in range(entries):
        key = cursor.string()
        if key in metadata:
            _damaged(file, f"is damaged: its metadata has {key!r} twice")
        metadata[key] = cursor.value(cursor.take("I")[0])
    cursor.end_of_metadata = cursor.at
    raw = [_raw_tensor(cursor) for _ in range(tensors)]
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 8 or alignment & (alignment - 1):
        _damaged(file, f"is damaged: an alignment of {alignment!r}")
    start = -(-cursor.at // alignment) * alignment
    found = [_tensor(file, *parts, start, alignment) for parts in raw]
    _check_places(file, found, cursor.size)
    named = {tensor.name: tensor for tensor in found}
    if len(named) != len(found):
        _damaged(file, "is damaged: it has two tensors of one name")
    return GgufHeader(file, metadata, named)


def _raw_tensor(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    """(name, dimensions, type, offset) as they stand in the file."""
    name = cursor.string()
    (count,) = cursor.take("I")
    if not 0 < count <= _MOST_DIMENSIONS:
        _damaged(cursor.file, f"is damaged: tensor {name!r} has {count} dimensions")
    dimensions = cursor.take(f"{count}Q")
    kind, offset = cursor.take("IQ")
    return name, dimensions, kind, offset


def _tensor(
    file: Path, name: str, dimensions: tuple[int, ...], kind: int, offset: int, start: int, alignment: int
) -> GgufTensor:
    if kind not in block_sizes():
        raise UnsupportedError(
            f"{file} has tensor {name!r} of type {kind}, which cannot be decoded",
            remedy="pip install -U gguf, or use another quantisation of the model",
        )
    type_name, elements, size = block_sizes()[kind]
    if min(dimensions) == 0 or dimensions[0] % elements:
        _damaged(file, f"is damaged: tensor {name!r} of {type_name} has dimensions {dimensions}")
    if offset % alignment:
        _damaged(file, f"is damaged: tensor {name!r} is not aligned")
    length = math.prod(dimensions) // elements * size
    return GgufTensor(name, file, type_name, dimensions[::-1], start + offset, length)


def _check_places(file: Path, tensors: list[GgufTensor], size: int) -> None:
    end = 0
    for tensor in sorted(tensors, key=lambda tensor: tensor.offset):
        if tensor.offset < end:
            _damaged(file, f"is damaged: tensor {tensor.name!r} overlaps the one before it")
        end = tensor.offset + tensor.length
    if end > size:
        _damaged(file, f"is truncated: its tensors need {end} bytes and it has {size}")
