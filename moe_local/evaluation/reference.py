"""What a reference model predicted, kept on disk while another model runs.

Two models under one budget would each have half the expert cache, and both would be timed with it. So the reference
runs first, alone, and leaves its log-probabilities in a file, written and read once from beginning to end. They are
float32: a divergence between good 8-bit weights and their original is about 1e-4 nats, and rounding log-probabilities
of around -10 to 16 bits is off by as much as 0.03.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from moe_local.errors import StorageError, is_disk_full
from moe_local.units import format_size

_SPARE = 1 << 28  # bytes of the disk to leave to others


class Reference:
    """Rows of log-probabilities, written in order and then read in order."""

    def __init__(self, file: IO[bytes], vocabulary: int) -> None:
        self._file = file
        self.vocabulary = vocabulary

    def write(self, rows: Tensor) -> None:
        """rows [n, vocabulary] float32."""
        try:
            self._file.write(rows.contiguous().numpy().data)
        except OSError as error:
            if is_disk_full(error):
                raise StorageError("the disk is full", remedy="free some space, or give a smaller --limit") from error
            raise StorageError(f"the reference's predictions cannot be written: {error.strerror}") from error

    def rewind(self) -> None:
        self._file.seek(0)

    def read(self, count: int) -> Tensor:
        """The next `count` rows: [count, vocabulary] float32."""
        rows = torch.empty(count, self.vocabulary)
        view = rows.numpy().data.cast("B")
        done = self._file.readinto(view)  # type: ignore[attr-defined]
        if done != len(view):
            raise StorageError("the reference's predictions ended too early", remedy="run it again")
        return rows


def reference_bytes(tokens: int, vocabulary: int) -> int:
    return tokens * vocabulary * 4


@contextmanager
def reference_file(folder: Path, tokens: int, vocabulary: int) -> Iterator[Reference]:
    """Room for the predictions of `tokens` in `folder`, gone at the end. Raises StorageError if there is none."""
    needed = reference_bytes(tokens, vocabulary)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free - _SPARE
        if needed > free:
            most = max(0, free // (vocabulary * 4))
            raise StorageError(
                f"the reference's predictions take {format_size(needed)} and {folder} has {format_size(max(0, free))}"
                " to spare",
                remedy=(f"give --limit {most} or less, or " if most > 1 else "")
                + "set MOE_LOCAL_HOME to a larger disk",
            )
        file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed below, whatever happens
    except OSError as error:
        raise StorageError(f"cannot write in {folder}: {os.strerror(error.errno or 0)}") from error
    with file:
        yield Reference(file, vocabulary)
