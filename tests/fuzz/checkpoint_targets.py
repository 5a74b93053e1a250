"""Files of a checkpoint as somebody publishes it: headers, configurations, tokenizers."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from moe_local.checkpoint.architecture import load_config
from moe_local.checkpoint.catalog import build_catalog
from moe_local.checkpoint.files import Checkpoint
from moe_local.checkpoint.header import read_header
from moe_local.checkpoint.names import INDEX
from moe_local.checkpoint.schemes import understood
from moe_local.checkpoint.tokenizer import load_tokenizer
from moe_local.generation.defaults import generation_defaults
from tests.fuzz.mutate import damaged, spoilt, spoilt_json
from tests.fuzz.target import Tiny, assert_inside, run_through


class SafetensorsHeader(Tiny):
    share = 2.0

    def prepare(self) -> None:
        super().prepare()
        self.skeleton, self.sound  # noqa: B018 - before anything is damaged

    @property
    def file(self) -> Path:
        return min(self.model.glob("model-*.safetensors"))

    def damage(self, random: Random) -> None:
        if random.random() < 0.3:
            self.file.write_bytes(damaged(random, self.sound))
            return
        length = int.from_bytes(self.sound[:8], "little")
        text = spoilt_json(random, self.sound[8 : 8 + length])
        self.file.write_bytes(struct.pack("<Q", len(text)) + text + self.sound[8 + length :])

    def open(self) -> None:
        size = self.file.stat().st_size
        for entry in read_header(self.file).values():
            assert entry.offset + entry.length <= size
        assert_inside(build_catalog(Checkpoint.open(self.model), self.skeleton))


class Index(SafetensorsHeader):
    share = 1.0

    @property
    def file(self) -> Path:
        return self.model / INDEX

    def damage(self, random: Random) -> None:
        self.file.write_bytes(spoilt_json(random, self.sound))

    def open(self) -> None:
        assert_inside(build_catalog(Checkpoint.open(self.model), self.skeleton))


class Config(Tiny):
    """The whole way to a plan."""

    share = 1.5

    def damage(self, random: Random) -> None:
        self.file.write_bytes(spoilt_json(random, self.sound))

    def open(self) -> None:
        run_through(self.model)


class CompositeConfig(Config):
    share = 0.5
    model_type = "qwen3_vl_moe"


class Quantised(Tiny):
    """The settings of every scheme, over tensors of its kind."""

    def prepare(self) -> None:
        from tests.checkpoint.schemes.test_hostile import SOUND

        self.schemes = SOUND
        self.where = self.folder / "scheme"
        self.where.mkdir()

    def damage(self, random: Random) -> None:
        name = random.choice(sorted(self.schemes))
        config, tensors = self.schemes[name]
        header: dict[str, Any] = {}
        at = 0
        types = {"int32": "I32", "uint8": "U8", "float32": "F32", "uint32": "U32", "float8_e4m3fn": "F8_E4M3"}
        for part, (dtype, shape) in tensors.items():
            length = int(np.prod(shape)) * dtype.itemsize
            kind = types[str(dtype).removeprefix("torch.")]
            header[f"a.{part}"] = {"dtype": kind, "shape": list(shape), "data_offsets": [at, at + length]}
            at += length
        if random.random() < 0.3:
            header = spoilt(random, header)
        text = json.dumps(header).encode()
        (self.where / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(at))
        settings = spoilt(random, {"quant_method": name, **config})
        place = random.choice(("quantization_config", "compression_config", "text_config", "quantization"))
        whole = {place: settings} if place != "text_config" else {place: {"quantization_config": settings}}
        (self.where / "config.json").write_text(json.dumps({"model_type": "qwen3_moe", **whole}))

    def open(self) -> None:
        understood(Checkpoint.open(self.where))


class GenerationConfig(Tiny):
    def prepare(self) -> None:
        super().prepare()
        self.config = load_config(Checkpoint.open(self.model))
        given = {
            "do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.1, "max_new_tokens": 50,
            "repetition_penalty": 1.1, "eos_token_id": [1, 2], "pad_token_id": 0, "bos_token_id": 1, "num_beams": 1,
            "no_repeat_ngram_size": 4, "min_new_tokens": 1, "suppress_tokens": [3], "stop_strings": ["x"],
        }  # fmt: skip
        self.good = json.dumps(given).encode()

    def damage(self, random: Random) -> None:
        (self.model / "generation_config.json").write_bytes(spoilt_json(random, self.good))

    def open(self) -> None:
        generation_defaults(self.model, self.config)


class Tokenizer(Tiny):
    """None, or one that encodes."""

    def prepare(self) -> None:
        super().prepare()
        self.checkpoint = Checkpoint.open(self.model)
        names = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
        self.good = {name: (self.model / name).read_bytes() for name in names if (self.model / name).exists()}

    def damage(self, random: Random) -> None:
        victim = random.choice(list(self.good))
        for name, content in self.good.items():
            (self.model / name).write_bytes(spoilt_json(random, content) if name == victim else content)

    def open(self) -> None:
        tokenizer, notes = load_tokenizer(self.checkpoint)
        assert tokenizer is None or tokenizer("a")["input_ids"]
        assert all(isinstance(note, str) for note in notes)


class Tiktoken(Tokenizer):
    share = 0.5

    def prepare(self) -> None:
        from tests.checkpoint.test_tokenizer import KIMI, _ranks

        super().prepare()
        for name in self.good:
            (self.model / name).unlink()
        settings = json.dumps(KIMI).encode()
        self.good = {"tiktoken.model": _ranks(b"he", b"ll"), "tokenizer_config.json": settings}

    def damage(self, random: Random) -> None:
        at = random.randrange(2)
        ranks, settings = self.good.values()
        (self.model / "tiktoken.model").write_bytes(ranks if at else damaged(random, ranks))
        (self.model / "tokenizer_config.json").write_bytes(spoilt_json(random, settings) if at else settings)
