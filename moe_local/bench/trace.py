"""Traces: which experts the routers of a model chose, token by token and layer by layer.

A trace is an `.npz` file (which `.xz` may compress further): `ids` [tokens, layers, k] uint8 or uint16, the prompts
one after another; `lens` [prompts] their tokens; `names` one a prompt; `meta` a JSON string (model, layers, experts,
top_k ...); and, in those that `moe-local bench --record` writes, `weights` [tokens, layers, k] float16 and the tokens
of each forward pass, `forwards`. An id equal to `experts` stands for no expert. Without `forwards` each token is a
forward pass of its own, as in decoding.
"""

from __future__ import annotations

import io
import json
import lzma
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_local.checkpoint.regular import read_regular
from moe_local.errors import MoeLocalError
from moe_local.units import format_size

Ids = NDArray[np.uint8] | NDArray[np.uint16]
_MOST_FILE = 256 << 20  # bytes, after `.xz`
_MOST_ARRAYS = 384 << 20  # bytes of them all: 300,000 tokens of 48 layers, 8 experts and their weights each
_MOST_TOKENS = 1 << 25
_MOST_DICTIONARY = 128 << 20  # bytes that xz may need


@dataclass(frozen=True)
class Trace:
    """A routing in memory. Raises MoeLocalError when its parts disagree."""

    ids: Ids  # [tokens, layers, k]
    lens: NDArray[np.int32]  # [prompts]
    names: tuple[str, ...]  # [prompts]
    experts: int  # of each layer
    weights: NDArray[np.float16] | None = None  # [tokens, layers, k]
    forwards: NDArray[np.int32] | None = None  # tokens of each forward pass
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.ids.ndim != 3 or self.ids.dtype not in (np.uint8, np.uint16):
            raise MoeLocalError(f"its ids are {self.ids.dtype} {list(self.ids.shape)}, not [tokens, layers, k]")
        if not self.ids.size:
            raise MoeLocalError("it has no tokens")
        if self.tokens > _MOST_TOKENS:
            raise MoeLocalError(f"it has {self.tokens} tokens")
        if not 1 <= self.experts <= 1 << 16:
            raise MoeLocalError(f"it has {self.experts} experts a layer")
        if int(self.ids.max()) > self.experts:
            raise MoeLocalError(f"it names expert {self.ids.max()} of {self.experts}")
        for name, parts in (("lens", self.lens), ("forwards", self.steps)):
            if parts.dtype.kind not in "iu" or parts.ndim != 1 or not len(parts):
                raise MoeLocalError(f"its {name} are {parts.dtype} {list(parts.shape)}")
            if parts.min() < 1 or parts.max() > self.tokens or int(parts.sum()) != self.tokens:
                raise MoeLocalError(f"its {name} do not add up to its {self.tokens} tokens")
        if len(self.names) != len(self.lens):
            raise MoeLocalError(f"it has {len(self.names)} names for {len(self.lens)} prompts")
        weights = self.weights
        if weights is not None and (weights.shape != self.ids.shape or weights.dtype.kind != "f"):
            raise MoeLocalError(
                f"its weights are {weights.dtype} {list(weights.shape)} and its ids {list(self.ids.shape)}"
            )

    @property
    def tokens(self) -> int:
        """Tokens of all prompts and answers."""
        return len(self.ids)

    @property
    def layers(self) -> int:
        """Layers that route."""
        return int(self.ids.shape[1])

    @property
    def top_k(self) -> int:
        """Experts that a token may choose in a layer."""
        return int(self.ids.shape[2])

    @property
    def model(self) -> str:
        """The name of the model that was recorded."""
        return str(self.meta.get("model", "unknown"))

    @property
    def steps(self) -> NDArray[np.int32]:
        """Tokens of each forward pass."""
        return np.ones(self.tokens, np.int32) if self.forwards is None else self.forwards

    def first(self, prompts: int) -> Trace:
        """Its first prompts only."""
        tokens = int(self.lens[:prompts].sum())
        ends = np.cumsum(self.steps)
        return Trace(
            self.ids[:tokens],
            self.lens[:prompts],
            self.names[:prompts],
            self.experts,
            None if self.weights is None else self.weights[:tokens],
            None if self.forwards is None else self.forwards[ends <= tokens],
            self.meta,
        )


def read_trace(path: Path) -> Trace:
    """A trace file, or the folder `NAME.part` that an interrupted recording has left.

    Raises MoeLocalError naming the file and what is wrong with it.
    """
    try:
        return _read_parts(path) if path.is_dir() else _read_file(path)
    except FileNotFoundError:
        part = part_of(path)
        remedy = f"its recording was cut off: use {part}" if part.is_dir() else "check the path"
        raise MoeLocalError(f"there is no trace {path}", remedy=remedy) from None
    except MoeLocalError as error:
        raise MoeLocalError(f"{path} is not a trace: {error.message}", remedy="record it again") from error
    except Exception as error:  # numpy, zipfile and lzma have errors of a dozen kinds for damage
        reason = " ".join(str(error).split()) or type(error).__name__
        raise MoeLocalError(f"{path} is not a trace, or damaged: {reason[:200]}", remedy="record it again") from error


def _read_file(path: Path) -> Trace:
    content = read_regular(path, _MOST_FILE)
    if path.suffix == ".xz":
        content = _decompressed(content)
    _assert_small(content)
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        if absent := {"ids", "lens", "meta"} - set(arrays.files):
            raise MoeLocalError(f"it lacks {', '.join(sorted(absent))}")
        optional = {name: arrays[name] for name in ("weights", "forwards") if name in arrays.files}
        names = arrays["names"].tolist() if "names" in arrays.files else None
        return _trace(arrays["ids"], arrays["lens"], names, json.loads(str(arrays["meta"])), **optional)


def _decompressed(content: bytes) -> bytes:
    decompressor = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MOST_DICTIONARY)
    plain = decompressor.decompress(content, max_length=_MOST_FILE + 1)
    if len(plain) > _MOST_FILE:
        raise MoeLocalError(f"it has more than {format_size(_MOST_FILE)}")
    if not decompressor.eof:
        raise MoeLocalError("it is cut off")
    return plain


def _assert_small(content: bytes) -> None:
    """Raises ValueError for what is no archive, MoeLocalError for arrays that are too large together."""
    if not content.startswith(b"PK"):
        raise ValueError("it is no archive of arrays")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        total = sum(part.file_size for part in archive.infolist())
    if total > _MOST_ARRAYS:
        raise MoeLocalError(f"its arrays take {format_size(total)}, and {format_size(_MOST_ARRAYS)} at most are read")


def _trace(ids: Any, lens: Any, names: Sequence[Any] | None, meta: Any, **optional: Any) -> Trace:
    if not isinstance(meta, dict) or type(meta.get("experts")) is not int:
        raise MoeLocalError("its meta does not tell the number of experts")
    named = tuple(map(str, range(len(lens)) if names is None else names))
    return Trace(ids, lens, named, meta["experts"], meta=meta, **optional)


def part_of(path: Path) -> Path:
    """Where a recording into `path` is kept until it ends."""
    return path.with_name(f"{path.name}.part")


def _read_parts(folder: Path) -> Trace:
    """What a recording has written so far, up to the last forward pass that is whole."""
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    shape = (-1, meta["layers"], meta["top_k"])
    row = meta["layers"] * meta["top_k"]
    kind = id_type(meta["experts"])
    ids, weights = _whole_rows(folder / "ids", kind, row), _whole_rows(folder / "weights", np.float16, row)
    forwards = _whole_rows(folder / "forwards", np.int32, 1)
    ends = np.cumsum(forwards)
    forwards = forwards[ends <= min(len(ids), len(weights)) // row]
    tokens = int(forwards.sum())
    lines = (folder / "prompts").read_text(encoding="utf-8").split("\n")[:-1]
    begun = [(p["at"], p["name"]) for p in map(json.loads, lines) if p["at"] < tokens]
    lens = np.diff([at for at, _ in begun] + [tokens]).astype(np.int32)
    return _trace(
        ids[: tokens * row].reshape(shape),
        lens,
        [name for _, name in begun],
        meta,
        weights=weights[: tokens * row].reshape(shape),
        forwards=forwards,
    )


def _whole_rows(file: Path, kind: Any, row: int) -> NDArray[Any]:
    content = read_regular(file, _MOST_FILE)
    size = row * np.dtype(kind).itemsize
    return np.frombuffer(content[: len(content) // size * size], dtype=kind)


def id_type(experts: int) -> type[np.uint8] | type[np.uint16]:
    """The least type for the ids of so many experts, and one more that stands for none."""
    return np.uint8 if experts < 256 else np.uint16
