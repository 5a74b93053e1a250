"""Writing safetensors files as a stream: sizes first, then the bytes, aligned, checked and renamed when whole."""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from moe_local.checkpoint.header import DTYPES
from moe_local.errors import StorageError, is_disk_full

PAGE = 4096  # bytes: what records are aligned to
BEHIND = 4  # tensors encoded while one is written
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Planned:
    """A tensor to be written."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def length(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def header_of(tensors: Mapping[str, Planned]) -> bytes:
    """Length and JSON of a safetensors header, padded with spaces so that the data begins at a page."""
    described: dict[str, object] = {}
    at = 0
    for name, tensor in tensors.items():
        described[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [at, at + tensor.length],
        }
        at += tensor.length
    text = json.dumps(described).encode()
    text += b" " * (-(len(text) + 8) % PAGE)
    return len(text).to_bytes(8, "little") + text


class StreamWriter:
    """One file that is being written, tensor by tensor in the order planned."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._cold = 0  # bytes that are on the disk and out of the page cache
        self.checksums: list[int] = []  # CRC-32 of each tensor

    def write(self, *parts: Tensor) -> None:
        """One tensor's bytes, in one or more parts, each contiguous and on the CPU."""
        checksum = 0
        for part in parts:
            view = part.reshape(-1).view(torch.uint8).numpy().data
            self._stream.write(view)
            checksum = zlib.crc32(view, checksum)
        self.checksums.append(checksum)
        self._release(self._stream.tell())

    def _release(self, written: int) -> None:
        """Lets go of page cache now and then: nobody reads this back soon, and a small machine needs the room."""
        if written - self._cold < 64 << 20 or not hasattr(os, "posix_fadvise"):
            return
        self._stream.flush()
        os.fdatasync(self._stream.fileno())
        os.posix_fadvise(self._stream.fileno(), self._cold, written - self._cold, os.POSIX_FADV_DONTNEED)
        self._cold = written


@contextmanager
def written_whole(file: Path, tensors: Mapping[str, Planned]) -> Iterator[StreamWriter]:
    """A writer of `file`, which appears under its name when the block ends well, and not otherwise.

    Raises StorageError when the disk is full or refuses.
    """
    partial = file.with_name(f"{file.name}.partial")
    try:
        with partial.open("wb") as stream:
            stream.write(header_of(tensors))
            yield StreamWriter(stream)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(file)
        sync_folder(file.parent)
    except OSError as error:
        partial.unlink(missing_ok=True)
        if is_disk_full(error):
            raise StorageError(
                f"the disk is full: {file} was not written", remedy="free some space and run it again: it resumes"
            ) from error
        raise StorageError(f"cannot write {file}: {error.strerror or error}", remedy="check the disk") from error


def sync_folder(folder: Path) -> None:
    """Makes renames in a folder last through a power cut."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class Behind:
    """Writes in a thread of its own, a few tensors behind."""

    def __init__(self, writer: StreamWriter) -> None:
        self._writer = writer
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="moe-local-write")
        self._pending: list[Future[None]] = []

    def write(self, *parts: Tensor) -> None:
        while len(self._pending) > BEHIND - 2:
            self._pending.pop(0).result()
        self._pending.append(self._thread.submit(self._writer.write, *parts))

    def __enter__(self) -> Behind:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            if error is None:
                for future in self._pending:
                    future.result()
        finally:
            self._thread.shutdown(wait=True, cancel_futures=True)
