"""What a packing has finished, so that it can be gone on with."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

from moe_local.checkpoint.json_file import parse_json
from moe_local.checkpoint.regular import read_regular
from moe_local.errors import CheckpointError, MoeLocalError

JOURNAL = "journal.jsonl"
Change = tuple[float, float]  # squares of what changed, and of the numbers, summed
_MOST = 64 << 20  # bytes: eleven a record
_NAME = re.compile(r"[\w-]{1,100}\.safetensors")


class Journal:
    """The files of an unfinished store that are whole, by name, with the checksums of their tensors.

    `changes` tells of each file of experts what packing changed of a sample, see `layer_change`. On disk a line of
    JSON each, written after the file that it is of; the first line tells which packing it is.
    """

    def __init__(self, file: Path, done: dict[str, list[int]], changes: dict[str, Change]) -> None:
        self._file = file
        self.done = done
        self.changes = changes

    @classmethod
    def open(cls, partial: Path, identity: dict[str, str]) -> Journal:
        """The journal in `partial`; an empty one where that is of another packing, which is thrown away."""
        if (journal := cls.read(partial, identity)) is None:
            if partial.exists() and not is_unfinished(partial):
                raise MoeLocalError(f"{partial} is in the way", remedy="move it, or name another folder")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            journal = cls(partial / JOURNAL, {}, {})
            journal._append(identity)
        return journal

    @classmethod
    def read(cls, partial: Path, identity: dict[str, str]) -> Journal | None:
        """The journal in `partial`; None where there is none, or that of another packing."""
        file = partial / JOURNAL
        lines = _json_lines(file)
        if not lines or lines[0] != identity:
            return None
        whole = [line for line in lines[1:] if _is_entry(line) and (partial / line["file"]).is_file()]
        done = {line["file"]: line["checksums"] for line in whole}
        return cls(file, done, {line["file"]: tuple(line["change"]) for line in whole if "change" in line})

    def add(self, name: str, checksums: list[int], change: Change | None = None) -> None:
        """Notes that a file is whole, once it lies under its name."""
        self.done[name] = checksums
        if change is not None:
            self.changes[name] = change
        self._append({"file": name, "checksums": checksums, **({} if change is None else {"change": list(change)})})

    def _append(self, line: dict[str, Any]) -> None:
        with self._file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")


def is_unfinished(directory: Path) -> bool:
    """Whether it is what a packing left that did not end, or nothing at all."""
    return directory.is_dir() and ((directory / JOURNAL).exists() or not any(directory.iterdir()))


def _json_lines(file: Path) -> list[dict[str, Any]]:
    """The lines that are whole: a kill may cut the last."""
    lines: list[dict[str, Any]] = []
    if not file.is_file():
        return lines
    try:
        for line in read_regular(file, _MOST).splitlines():
            lines.append(parse_json(line))
    except (OSError, ValueError, CheckpointError):
        pass  # what cannot be read was not finished
    return lines


def _is_entry(line: Any) -> bool:
    """Whether a line is what `add` writes: damage costs the work that it stood for, and no more."""
    if not isinstance(line, dict) or line.keys() - {"change"} != {"file", "checksums"}:
        return False
    name, checksums, change = line["file"], line["checksums"], line.get("change", [0.0, 0.0])
    named = isinstance(name, str) and _NAME.fullmatch(name) is not None
    summed = isinstance(checksums, list) and all(type(c) is int and 0 <= c < 1 << 32 for c in checksums)
    return named and summed and _is_change(change)


def _is_change(value: Any) -> bool:
    numbers = isinstance(value, list) and len(value) == 2 and all(type(each) is float for each in value)
    return numbers and all(math.isfinite(each) and each >= 0 for each in value)
