"""Opening a file that somebody else made: only if it is one, and no more than it may have. Imports nothing heavy."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from moe_local.errors import CheckpointError
from moe_local.units import format_size


def open_regular(file: Path) -> BinaryIO:
    """The file, opened to be read. Raises CheckpointError for a pipe or a device, which may never end, and OSError.

    Opening a pipe would wait for somebody who writes into it.
    """
    descriptor = os.open(file, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0))
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise CheckpointError(f"cannot read {file}: it is not a regular file", remedy="name a file")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(file: Path, most: int) -> bytes:
    """All of the file. Raises CheckpointError for what is no file, or has more than `most` bytes, and OSError."""
    with open_regular(file) as stream:
        data = stream.read(most + 1)
    if len(data) > most:
        raise too_large(file, most)
    return data


def assert_regular(file: Path, most: int) -> None:
    """As `read_regular`, without reading: for files that other code opens. One that is not there passes."""
    try:
        status = file.stat()
    except OSError:
        return
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(f"cannot read {file}: it is not a regular file", remedy="name a file")
    if status.st_size > most:
        raise too_large(file, most)


def too_large(file: Path, most: int) -> CheckpointError:
    return CheckpointError(
        f"{file} has more than {format_size(most)}, which no file of its kind has", remedy="download it again"
    )
