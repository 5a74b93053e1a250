"""Small files that stand for large things."""

from __future__ import annotations

import io
import lzma
import shutil
import struct
from random import Random

import numpy as np

from moe_local.bench.trace import read_trace
from moe_local.checkpoint.architecture import load_config
from moe_local.checkpoint.files import Checkpoint
from moe_local.checkpoint.header import read_header
from moe_local.generation.defaults import generation_defaults
from moe_local.testing import architecture, write_tiny_checkpoint
from tests.fuzz.target import Target

_BOMBS = [  # (begin, what is repeated, end)
    (b"[", b"[],", b"0]"),
    (b'{"a":[', b"{},", b"0]}"),
    (b'{"a":[', b'{"b":0},', b"0]}"),
    (b'{"a":{"dtype":"F32","data_offsets":[0,0],"shape":[', b"9999999999,", b"1]}}"),
    (b'{"a":', b"9", b"}"),
    (b'{"a":"', b"x" * 40, b'"}'),
    (b'{"a":[', b'"ab",', b"0]}"),
    (b'{"a":[', b"0.5,", b"0]}"),
    (b"", b'{"a":', b""),
]


class Bombs(Target):
    """Small files that stand for large things."""

    share = 0.05

    def prepare(self) -> None:
        self.model = write_tiny_checkpoint(architecture("qwen3_moe"), self.folder / "model")

    def damage(self, random: Random) -> None:
        count = random.choice((500_000, 1_900_000, 3_000_000, 9_000_000))
        begin, unit, end = random.choice(_BOMBS)
        text = begin + unit * (count // max(1, len(unit) // 4)) + end
        self.choice = random.choice(("config", "header", "trace", "defaults", "xz"))
        config = self.model / "config.json"
        kept = self.folder / "config.json"
        if not kept.exists():
            shutil.copy(config, kept)
        shutil.copy(kept, config)
        if self.choice == "config":
            config.write_bytes(text)
        elif self.choice == "defaults":
            (self.model / "generation_config.json").write_bytes(text)
        elif self.choice == "header":
            (self.folder / "a.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
        elif self.choice == "xz":
            (self.folder / "a.npz.xz").write_bytes(lzma.compress(bytes(600 << 20), preset=0))
        else:
            with io.BytesIO() as stream:
                zeros = np.zeros((random.choice((1 << 20, 1 << 28)), 1, 1), np.uint8)
                lens = np.array([len(zeros)])
                np.savez_compressed(stream, ids=zeros, lens=lens, meta=np.array('{"experts": 8}'))
                (self.folder / "a.npz").write_bytes(stream.getvalue())

    def open(self) -> None:
        if self.choice == "config":
            Checkpoint.open(self.model)
        elif self.choice == "defaults":
            generation_defaults(self.model, load_config(Checkpoint.open(self.model)))
        elif self.choice == "header":
            read_header(self.folder / "a.safetensors")
        else:
            read_trace(self.folder / ("a.npz.xz" if self.choice == "xz" else "a.npz"))
