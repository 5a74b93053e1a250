"""Files on the disk: positioned reads into place, past the system's page cache where that pays."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from moe_local.checkpoint.record import Extent
from moe_local.errors import StorageError

PAGE = 4096  # bytes: what direct reads must be aligned to


class ReadAt(Protocol):
    """Fills `buffer` from byte `offset` of `file`, or raises StorageError. Called from several threads."""

    def __call__(self, file: Path, offset: int, buffer: memoryview) -> None: ...


class FileReader:
    """`pread` into place; no GIL is held while the disk works.

    With `direct`, what is aligned (records of a store are) comes from the disk straight into place, past the system's
    page cache: no copy, and no memory beside our own. Everything else is read through the page cache.
    """

    def __init__(self) -> None:
        self._descriptors: dict[Path, int] = {}
        self._direct: dict[Path, int] = {}

    def open(self, files: Sequence[Path], *, direct: bool = False) -> None:
        for file in files:
            self._descriptors[file] = descriptor = _open(file)
            if hasattr(os, "posix_fadvise"):
                # Records are read whole and in no order: what the kernel would read ahead is another expert.
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
            if direct and (past_cache := _open_direct(file)) is not None:
                self._direct[file] = past_cache

    @property
    def direct(self) -> bool:
        """Whether every file can be read past the page cache."""
        return self._direct.keys() == self._descriptors.keys()

    def __call__(self, file: Path, offset: int, buffer: memoryview) -> None:
        done = 0
        while done < len(buffer):
            rest = buffer[done:]
            try:
                count = _read(self._descriptor(file, offset + done, rest), rest, offset + done)
            except OSError as error:
                if error.errno == errno.EINVAL and self._direct.pop(file, None) is not None:
                    continue  # opened, but cannot: some network file systems
                raise StorageError(
                    f"reading {file} failed at byte {offset + done}: {error.strerror}",
                    remedy="check the disk",
                ) from error
            if count == 0:
                raise StorageError(
                    f"{file} ended at byte {offset + done}, inside a tensor: it has changed since it was opened",
                    remedy="restore the file",
                )
            done += count

    def _descriptor(self, file: Path, offset: int, buffer: memoryview) -> int:
        direct = self._direct.get(file)
        if direct is None or (offset | len(buffer)) % PAGE or _address(buffer) % PAGE:
            return self._descriptors[file]
        return direct

    def forget(self, extents: Sequence[Extent]) -> None:
        """Lets go of what the system has cached of these bytes: they are not read again soon."""
        if hasattr(os, "posix_fadvise"):
            for extent in extents:
                descriptor = self._descriptors[extent.file]
                os.posix_fadvise(descriptor, extent.offset, extent.length, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        for descriptors in (self._descriptors, self._direct):
            while descriptors:
                os.close(descriptors.popitem()[1])


def _open(file: Path) -> int:
    try:
        return os.open(file, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    except OSError as error:
        raise StorageError(f"cannot open {file}: {error.strerror}", remedy="check its permissions") from error


def _open_direct(file: Path) -> int | None:
    """A descriptor that reads past the page cache; None where the file system has no such thing."""
    if not hasattr(os, "O_DIRECT"):
        return None
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_DIRECT)
    except OSError:
        return None
    try:
        with mmap.mmap(-1, PAGE) as page:
            os.preadv(descriptor, [page], 0)  # some network file systems open it and cannot
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _address(buffer: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


if hasattr(os, "preadv"):

    def _read(descriptor: int, buffer: memoryview, offset: int) -> int:
        return os.preadv(descriptor, [buffer], offset)

else:  # Windows has no positioned read in `os`
    _seek_and_read = threading.Lock()

    def _read(descriptor: int, buffer: memoryview, offset: int) -> int:
        with _seek_and_read:
            os.lseek(descriptor, offset, os.SEEK_SET)
            data = os.read(descriptor, len(buffer))
        buffer[: len(data)] = data
        return len(data)
