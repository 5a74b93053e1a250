"""Small files that stand for large things."""

from __future__ import annotations

import io
import json
import lzma
import math
import shutil
import struct
import zlib
from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any, cast

import gguf
import numpy as np
import torch
from transformers import PreTrainedModel

from moe_local.bench.report import SCHEMA, read_report, rows
from moe_local.bench.trace import read_trace
from moe_local.bench.workload import read_prompts
from moe_local.checkpoint.architecture import build_skeleton, load_config, model_class
from moe_local.checkpoint.catalog import Catalog, build_catalog
from moe_local.checkpoint.files import INDEX, Checkpoint
from moe_local.checkpoint.gguf_header import _ARRAY, _SCALARS, _STRING, metadata_alone, read_gguf_header
from moe_local.checkpoint.header import read_header
from moe_local.checkpoint.schemes import understood
from moe_local.checkpoint.tokenizer import load_tokenizer
from moe_local.engine import load
from moe_local.experts.warm import _read as read_warm
from moe_local.generation.chat import ChatSession
from moe_local.generation.defaults import generation_defaults
from moe_local.generation.sampling import Sampling
from moe_local.jobs.files import AnswerFile, Source, Terms
from moe_local.jobs.lines import FORMATS, Defaults, guess_format, understand
from moe_local.planning import machines
from moe_local.planning.options import Options
from moe_local.store import MANIFEST, first_use, pack, verify
from moe_local.store.manifest import _digest
from moe_local.store.progress import JOURNAL, Journal
from moe_local.testing import architecture, write_tiny_checkpoint
from moe_local.testing.gguf import NAMES, write_tiny_gguf
from tests.fuzz.mutate import damaged, early, spoilt, spoilt_json, spoilt_lines

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
