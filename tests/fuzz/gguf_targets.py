"""GGUF files of every architecture that is known, and their metadata."""

from __future__ import annotations

import math
import struct
from random import Random
from typing import Any

import gguf

from moe_local.checkpoint.files import Checkpoint
from moe_local.checkpoint.gguf_header import _ARRAY, _SCALARS, _STRING, metadata_alone, read_gguf_header
from moe_local.checkpoint.tokenizer import load_tokenizer
from moe_local.testing import architecture
from moe_local.testing.gguf import NAMES, write_tiny_gguf
from tests.fuzz.mutate import early
from tests.fuzz.target import Target, run_through


class Gguf(Target):
    """Of every architecture that is known, plain and quantised."""

    share = 2.0

    def prepare(self) -> None:
        self.sound = []
        for name in NAMES:
            write_tiny_gguf(architecture(name), self.folder / "sound.gguf", "Q4_0")
            self.sound.append((self.folder / "sound.gguf").read_bytes())
        self.file = self.folder / "model.gguf"

    def damage(self, random: Random) -> None:
        self.file.write_bytes(early(random, random.choice(self.sound)))

    def open(self) -> None:
        run_through(self.file)


class GgufMetadata(Gguf):
    """Keys gone, and values of other types, sizes and signs."""

    share = 1.5

    def prepare(self) -> None:
        super().prepare()
        self.pieces = []
        for content in self.sound:
            self.file.write_bytes(content)
            fields = gguf.GGUFReader(self.file).fields.values()
            given = [(f.name, f.types, f.contents()) for f in fields if not f.name.startswith("GGUF.")]
            end = len(metadata_alone(self.file))
            start = min(tensor.offset for tensor in read_gguf_header(self.file).tensors.values())
            self.pieces.append((given, content[8:16], content[end:start].rstrip(b"\0"), content[start:]))

    def damage(self, random: Random) -> None:
        given, count, infos, data = random.choice(self.pieces)
        kept = [field for field in given if random.random() > 0.02]
        body = b""
        victims = {random.randrange(len(kept)) for _ in range(random.choice((1, 1, 2, 4)))}
        for number, (name, types, value) in enumerate(kept):
            body += _string(name) + (_odd(random) if number in victims else _value(types, value))
        head = struct.pack("<4sI", b"GGUF", 3) + count + struct.pack("<Q", len(kept)) + body + infos
        # `rstrip` may have taken zeros of the last offset: an entry ends where its 8 bytes do.
        head += bytes(8)
        self.file.write_bytes(head + bytes(-len(head) % 32) + data)


def _string(text: str) -> bytes:
    data = text.encode(errors="surrogatepass")
    return struct.pack("<Q", len(data)) + data


def _value(types: list[Any], value: Any) -> bytes:
    """A value of GGUF's metadata with its type before it."""
    kind = int(types[0])
    if kind == _ARRAY:
        element = int(types[-1])
        items = b"".join(_plain(element, item) for item in value)
        return struct.pack("<IIQ", kind, element, len(value)) + items
    return struct.pack("<I", kind) + _plain(kind, value)


def _plain(kind: int, value: Any) -> bytes:
    return _string(value) if kind == _STRING else struct.pack(f"<{_SCALARS[kind]}", value)


def _odd(random: Random) -> bytes:
    """A value of any type."""
    kind = random.choice((*_SCALARS, _STRING, _ARRAY))
    if kind == _STRING:
        return struct.pack("<I", kind) + _string(random.choice(("", "linear", "yarn", "longrope", "gpt2", "x" * 300)))
    if kind == _ARRAY:
        element = random.choice(list(_SCALARS))
        items = [random.choice(_FEW) for _ in range(random.choice((0, 1, 2, 40)))]
        return struct.pack("<IIQ", kind, element, len(items)) + b"".join(_fitted(element, item) for item in items)
    return struct.pack("<I", kind) + _fitted(kind, random.choice(_FEW))


_FEW = (
    0,
    0,
    1,
    1,
    2,
    3,
    7,
    64,
    255,
    65535,
    2**31 - 1,
    2**32 - 1,
    2**63,
    -1,
    -4,
    0.5,
    1e30,
    float("inf"),
    float("nan"),
)


def _fitted(kind: int, value: float) -> bytes:
    """The number as far as the type can hold it."""
    form = _SCALARS[kind]
    if form in "fd":
        return struct.pack(f"<{form}", float(value))
    if not math.isfinite(value):
        value = 0
    size = struct.calcsize(form)
    return (int(value) & ((1 << 8 * size) - 1)).to_bytes(size, "little")


class GgufTokenizer(GgufMetadata):
    share = 0.3

    def open(self) -> None:
        load_tokenizer(Checkpoint.open(self.file))
