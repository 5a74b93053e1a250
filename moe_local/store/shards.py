"""The files of a checkpoint while it is packed: they are here, or they come one by one and go again."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Protocol

from moe_local.checkpoint.files import Checkpoint

Report = Callable[[str, float], None]  # (stage, fraction done)


class Progress:
    """Bytes fetched and written, told as a fraction of all that there will be."""

    def __init__(self, total: int, report: Report) -> None:
        self._total = total
        self._report = report
        self._done = 0
        self.stage = ""

    def add(self, count: int) -> None:
        self._done += count
        self._report(self.stage, min(1.0, self._done / max(1, self._total)))


class Shards(Protocol):
    """Where the checkpoint's files come from."""

    @property
    def sizes(self) -> Mapping[Path, int]:
        """The bytes of disk that each is yet to take."""

    def need(self, files: Collection[Path], progress: Progress) -> None:
        """Returns once all of these are here, whole. Tells `progress` of their sizes' bytes."""

    def keep_only(self, files: Collection[Path]) -> None:
        """No other file is needed any more."""


class Here:
    """Files that are here already, and stay."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.sizes: Mapping[Path, int] = dict.fromkeys(checkpoint.files, 0)

    def need(self, files: Collection[Path], progress: Progress) -> None:
        """Nothing to do."""

    def keep_only(self, files: Collection[Path]) -> None:
        """They are somebody's."""
