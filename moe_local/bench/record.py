"""Recording the routing of a model while it runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from torch import Tensor

from moe_local.bench.trace import Trace, id_type, part_of, read_trace
from moe_local.errors import MoeLocalError, StorageError, UnsupportedError
from moe_local.files import atomic_write


class Recorder:
    """A tap on the routing that writes it down, and leaves it as it is. Use it in a `with`.

    Each forward pass is appended to files in `PATH.part`, so that whatever ends the process loses one pass at most;
    at the end they become PATH, by an atomic rename. `meta` is written into the trace (see `Trace`).
    Raises StorageError when the disk does not take it.
    """

    def __init__(self, path: Path, *, layers: int, experts: int, top_k: int, meta: Mapping[str, Any]) -> None:
        self._path = path
        self._folder = part_of(path)
        self._experts = experts
        self._shape = (layers, top_k)
        self._pass: list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]] = []  # of the layers seen in this pass
        self._tokens = 0
        self._failed = False
        meta = {**meta, "layers": layers, "experts": experts, "top_k": top_k}
        try:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder.mkdir(parents=True)
            (self._folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
            names = ("ids", "weights", "forwards", "prompts")
            self._files = {name: (self._folder / name).open("wb") for name in names}
        except OSError as error:
            raise _cannot_write(path, error) from error

    def prompt(self, name: str) -> None:
        """What follows belongs to this prompt."""
        self._pass.clear()
        self._write("prompts", json.dumps({"at": self._tokens, "name": name}).encode() + b"\n")

    def __call__(self, layer: int, index: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        if layer != len(self._pass):
            self._pass.clear()  # an interrupted pass went before
        if layer == len(self._pass):
            self._pass.append((self._padded(index), self._padded(weights)))
        if len(self._pass) == self._shape[0]:
            self._flush()
        return index, weights

    def _padded(self, values: Tensor) -> np.ndarray[Any, Any]:
        """[T, k] -> [T, top_k], with no expert in the rest."""
        found = values.detach().cpu()
        if found.is_floating_point():
            return _fill(found.float().numpy().astype(np.float16), self._shape[1], 0)
        kept = found.clamp(max=self._experts).numpy().astype(id_type(self._experts))
        return _fill(kept, self._shape[1], self._experts)

    def _flush(self) -> None:
        """Appends one forward pass."""
        tokens = {len(ids) for ids, _ in self._pass}
        if len(tokens) != 1:
            raise UnsupportedError("its layers see different tokens of one forward pass: it cannot be recorded")
        ids, weights = (np.stack(parts, axis=1) for parts in zip(*self._pass, strict=True))  # [T, layers, top_k]
        self._pass.clear()
        self._write("ids", ids.tobytes())
        self._write("weights", weights.tobytes())
        self._write("forwards", np.int32(len(ids)).tobytes())
        self._tokens += len(ids)

    def _write(self, name: str, content: bytes) -> None:
        try:
            self._files[name].write(content)
            self._files[name].flush()
        except OSError as error:
            self._failed = True
            raise _cannot_write(self._path, error, kept=self._tokens > 0) from error

    def close(self) -> None:
        """Makes the trace of what was recorded, if there is any.

        Raises StorageError when the disk does not take it; what was recorded is then in `PATH.part`.
        """
        for file in self._files.values():
            with suppress(OSError):  # what a write could not put down is tried again here, and `_write` has told it
                file.close()
        if self._tokens and self._failed:
            return  # there is no room, as was said
        if self._tokens:
            self._finish()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _finish(self) -> None:
        trace = read_trace(self._folder)
        try:
            _put(trace, self._path)
        except OSError as error:
            raise _cannot_write(self._path, error, kept=True) from error

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except MoeLocalError:
            if error is None:
                raise  # else the first error is the one to tell


def _fill(values: np.ndarray[Any, Any], width: int, value: float) -> np.ndarray[Any, Any]:
    return np.pad(values, ((0, 0), (0, width - values.shape[1])), constant_values=value)


def write_trace(trace: Trace, path: Path) -> None:
    """Raises StorageError when the disk does not take it; PATH is then as it was."""
    try:
        _put(trace, path)
    except OSError as error:
        raise _cannot_write(path, error) from error


def _put(trace: Trace, path: Path) -> None:
    arrays: dict[str, Any] = {"ids": trace.ids, "lens": trace.lens, "names": np.array(trace.names)}
    optional: dict[str, Any] = {"weights": trace.weights, "forwards": trace.forwards}
    given = {name: array for name, array in optional.items() if array is not None}
    with atomic_write(path) as file:
        np.savez_compressed(file, meta=json.dumps(dict(trace.meta)), **arrays, **given)


def _cannot_write(path: Path, error: OSError, *, kept: bool = False) -> StorageError:
    remedy = "check the folder and its room" + (f"; what was recorded is in {part_of(path)}" if kept else "")
    return StorageError(f"cannot write the trace {path}: {error.strerror}", remedy=remedy)
