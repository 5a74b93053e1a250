"""What a packing has finished, so that it can be gone on with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from moe_local.errors import MoeLocalError

JOURNAL = "journal.jsonl"


class Journal:
    """The files that are whole, with the checksums of their tensors: a line each, written after the file."""

    def __init__(self, file: Path, done: dict[str, list[int]]) -> None:
        self._file = file
        self.done = done

    @classmethod
    def open(cls, partial: Path, identity: dict[str, str]) -> Journal:
        """The journal in `partial`; an empty one where that is of another packing, which is thrown away."""
        file = partial / JOURNAL
        lines = _json_lines(file)
        if not lines or lines[0] != identity:
            if partial.exists() and not is_unfinished(partial):
                raise MoeLocalError(f"{partial} is in the way", remedy="move it, or name another folder")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            journal = cls(file, {})
            journal._append(identity)
            return journal
        whole = {line["file"]: line["checksums"] for line in lines[1:] if (partial / line["file"]).exists()}
        return cls(file, whole)

    def add(self, name: str, checksums: list[int]) -> None:
        self.done[name] = checksums
        self._append({"file": name, "checksums": checksums})

    def _append(self, line: dict[str, Any]) -> None:
        with self._file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")

    def bytes_done(self, partial: Path) -> int:
        return sum((partial / name).stat().st_size for name in self.done)


def is_unfinished(directory: Path) -> bool:
    """Whether it is what a packing left that did not end, or nothing at all."""
    return directory.is_dir() and ((directory / JOURNAL).exists() or not any(directory.iterdir()))


def _json_lines(file: Path) -> list[dict[str, Any]]:
    """The lines that are whole: a kill may cut the last."""
    lines: list[dict[str, Any]] = []
    if file.exists():
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                lines.append(json.loads(line))
            except ValueError:
                break
    return lines
