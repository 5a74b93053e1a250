"""What is damaged, and how it is opened. A target is a class and a line in `TARGETS`."""

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

OPTIONS = Options(device="cpu", context=64, dtype="float32", ram=8 << 30)
SMALL = 400_000  # bytes of a shard


class Target(ABC):
    """`folder` is the target's own, for what it makes once."""

    share = 1.0  # of all inputs, beside the others'

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.prepare()

    @abstractmethod
    def plan_load(self) -> None:
        """Makes what is sound."""

    @abstractmethod
    def damage(self, random: Random) -> None:
        """Writes what is damaged over it, whatever was damaged before."""

    @abstractmethod
    def open(self) -> None:
        """Opens it, as the product does. Who calls judges what is raised; an assertion is a wrong answer."""


def assert_inside(catalog: Catalog) -> None:
    """Every extent lies in its file, and in its record."""
    sizes: dict[Path, int] = {}
    for layer in catalog.layers:
        for layout, extents in zip(layer.layouts, layer.records, strict=True):
            for extent in extents:
                size = sizes.setdefault(extent.file, extent.file.stat().st_size)
                assert 0 <= extent.offset <= extent.offset + extent.length <= size
                assert 0 <= extent.position <= extent.position + extent.length <= layout.size


def run_through(model: Path) -> None:
    """Plans, loads, and computes a few tokens: of damage that is not seen, the numbers may be wrong and no more."""
    with load(model, OPTIONS) as engine, torch.no_grad():
        assert_inside(engine.prepared.catalog)
        logits = engine.model(input_ids=torch.tensor([[5, 6, 7]])).logits
        assert logits.shape[:2] == (1, 3)


class Tiny(Target):
    """A tiny checkpoint of two shards, of which one file is damaged."""

    model_type = "qwen3_moe"

    def plan_load(self) -> None:
        self.model = write_tiny_checkpoint(
            architecture(self.model_type), self.folder / "model", max_shard_bytes=SMALL
        )

    @cached_property
    def skeleton(self) -> PreTrainedModel:
        config = load_config(Checkpoint.open(self.model))
        return build_skeleton(model_class(config), config, torch.float32)

    @cached_property
    def sound(self) -> bytes:
        return self.file.read_bytes()

    @property
    def file(self) -> Path:
        return self.model / "config.json"


class SafetensorsHeader(Tiny):
    share = 2.0

    def plan_load(self) -> None:
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

    def plan_load(self) -> None:
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
    def plan_load(self) -> None:
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

    def plan_load(self) -> None:
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

    def plan_load(self) -> None:
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


class Gguf(Target):
    """Of every architecture that is known, plain and quantised."""

    share = 2.0

    def plan_load(self) -> None:
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

    def plan_load(self) -> None:
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


class StoreManifest(Target):
    """A manifest whose digest fits."""

    share = 1.5

    def plan_load(self) -> None:
        model = write_tiny_checkpoint(architecture("qwen3_moe"), self.folder / "model", max_shard_bytes=SMALL)
        self.store = pack(first_use.plan(model, first_use.choose("int4", 32, "int8")), self.folder / "store")
        self.file = self.store / MANIFEST
        self.body = json.loads(self.file.read_text())
        self.body.pop("digest")

    def damage(self, random: Random) -> None:
        body = spoilt(random, self.body)
        digest = {"digest": _digest(body)} if isinstance(body, dict) else {}
        text = json.dumps({**digest, **body} if isinstance(body, dict) else body)
        self.file.write_text(text if random.random() < 0.95 else damaged(random, text.encode()).decode("latin-1"))

    def open(self) -> None:
        if self.file.stat().st_mtime_ns % 4 == 0:
            verify(self.store)
        run_through(self.store)


class StoreFile(StoreManifest):
    """One of its other files, and nobody made anything fit."""

    share = 1.0

    def plan_load(self) -> None:
        super().prepare()
        self.good = {file: file.read_bytes() for file in sorted(self.store.iterdir()) if file != self.file}

    def damage(self, random: Random) -> None:
        victim = random.choice(list(self.good))
        for file, content in self.good.items():
            if file == victim:
                file.write_bytes(early(random, content))
            elif file.stat().st_size != len(content) or file.read_bytes() != content:
                file.write_bytes(content)

    def open(self) -> None:
        verify(self.store)
        run_through(self.store)


class PackingJournal(Target):
    def plan_load(self) -> None:
        self.identity = {"fingerprint": "a" * 64, "packing": "int4-g32, dense int8"}
        lines = [self.identity, *({"file": f"experts-{n:05}.safetensors", "checksums": [1, 2]} for n in range(3))]
        self.good = b"".join(json.dumps(line).encode() + b"\n" for line in lines)

    def damage(self, random: Random) -> None:
        partial = self.folder / "partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        for number in range(3):
            (partial / f"experts-{number:05}.safetensors").write_bytes(b"x")
        (partial / JOURNAL).write_bytes(spoilt_lines(random, self.good))

    def open(self) -> None:
        journal = Journal.open(self.folder / "partial", self.identity)
        assert journal.bytes_done(self.folder / "partial") >= 0


class BatchAnswers(Target):
    """What a batch job left: its answers, and the note beside them."""

    terms = Terms("0" * 64, "model", {"temperature": 0.5, "seed": 1})

    def plan_load(self) -> None:
        self.out, self.note = self.folder / "out", self.folder / "out.job"
        self.answers = b"".join(b'{"id": null, "line": %d, "text": "x"}\n' % number for number in range(1, 6))

    def damage(self, random: Random) -> None:
        note = json.dumps(vars(self.terms)).encode()
        both = random.randrange(2)
        self.out.write_bytes(self.answers if both else spoilt_lines(random, self.answers))
        self.note.write_bytes(spoilt_json(random, note) if both else note)

    def open(self) -> None:
        file = AnswerFile(self.out, self.terms, restart=False)
        try:
            assert file.failed <= len(file.done)
        finally:
            file.close()


class BatchLines(Target):
    """A job's input, in each of its formats. What is wrong in a line is told, never raised."""

    share = 1.5

    def plan_load(self) -> None:
        own = {
            "id": "a", "prompt": "hi", "system": "s", "raw": False, "stop": ["x"], "temperature": 0.5, "top_k": 4,
            "max_new_tokens": 3, "seed": 1, "metadata": {"a": 1},
        }  # fmt: skip
        messages = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}, {"role": "user", "content": "x"}]
        body = {"model": "m", "messages": messages, "max_tokens": 3, "stop": "x", "n": 1, "tools": [], "seed": 4}
        openai = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
        old = {"custom_id": 5, "method": "POST", "url": "/v1/completions", "body": {"prompt": "x", "echo": False}}
        given = [own, {"messages": messages}, openai, old]
        self.good = b"\n".join(json.dumps(line).encode() for line in given)

    def damage(self, random: Random) -> None:
        (self.folder / "in.jsonl").write_bytes(spoilt_lines(random, self.good))

    def open(self) -> None:
        source = Source(str(self.folder / "in.jsonl"), io.BytesIO())
        try:
            guess_format("in", source.first)
            for number, line in source:
                for make in FORMATS.values():
                    read = understand(make(), number, line, Defaults(Sampling()))
                    assert (read.error is None) != (read.request is None)
                    json.dumps(make().write(read, None)) if read.error else None
        finally:
            source.close()


class Trace(Target):
    share = 1.5

    def plan_load(self) -> None:
        ids = np.arange(60, dtype=np.uint8).reshape(10, 3, 2) % 8
        meta = np.array(json.dumps({"experts": 8, "model": "x", "layers": 3, "top_k": 2}))
        arrays = {
            "ids": ids, "lens": np.array([4, 6], np.int32), "names": np.array(["a", "b"]), "meta": meta,
            "weights": np.ones(ids.shape, np.float16), "forwards": np.array([4, 1, 5], np.int32),
        }  # fmt: skip
        self.sound = []
        for save in (np.savez, np.savez_compressed):
            stream = io.BytesIO()
            save(stream, **cast(Any, arrays))
            self.sound.append(stream.getvalue())

    def damage(self, random: Random) -> None:
        content = random.choice(self.sound)
        packed = random.random() < 0.3
        self.file = self.folder / ("a.npz.xz" if packed else "a.npz")
        if packed and random.random() < 0.5:
            self.file.write_bytes(damaged(random, lzma.compress(content)))
        else:
            content = damaged(random, content)
            self.file.write_bytes(lzma.compress(content) if packed else content)

    def open(self) -> None:
        trace = read_trace(self.file)
        assert trace.tokens == trace.lens.sum() == trace.steps.sum()
        assert trace.ids.max() <= trace.experts


class Recording(Target):
    """The folder that an interrupted recording leaves."""

    def plan_load(self) -> None:
        self.part = self.folder / "a.npz.part"
        self.part.mkdir()
        meta = {"experts": 8, "layers": 3, "top_k": 2, "model": "x"}
        self.good = {
            "meta.json": json.dumps(meta).encode(),
            "ids": bytes(60),
            "weights": bytes(120),
            "forwards": np.array([4, 1, 5], np.int32).tobytes(),
            "prompts": b'{"at": 0, "name": "a"}\n{"at": 4, "name": "b"}\n',
        }

    def damage(self, random: Random) -> None:
        victim = random.choice(list(self.good))
        how = {"meta.json": spoilt_json, "prompts": spoilt_lines}.get(victim, damaged)
        for name, content in self.good.items():
            (self.part / name).write_bytes(how(random, content) if name == victim else content)

    def open(self) -> None:
        trace = read_trace(self.part)
        assert trace.tokens == trace.lens.sum() == trace.steps.sum()


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

    def plan_load(self) -> None:
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


class Conversation(Target):
    def plan_load(self) -> None:
        said = [("system", "s"), ("user", "hi"), ("assistant", "yes"), ("user", "and")]
        self.good = json.dumps([{"role": role, "content": text} for role, text in said]).encode()

    def damage(self, random: Random) -> None:
        (self.folder / "saved.json").write_bytes(spoilt_json(random, self.good))

    def open(self) -> None:
        session = ChatSession(cast(Any, None), Sampling())  # nothing is generated
        session.load(self.folder / "saved.json")
        assert all(isinstance(message["content"], str) for message in session.messages)


class Profiles(Target):
    def plan_load(self) -> None:
        from importlib.resources import files

        entries = [entry for entry in files("moe_local.hardware").iterdir() if entry.name.endswith(".toml")]
        self.sound = [entry.read_bytes() for entry in entries if entry.name != machines.LOCALITIES]

    def damage(self, random: Random) -> None:
        self.text = damaged(random, random.choice(self.sound)).decode("utf-8", errors="replace")

    def open(self) -> None:
        found = machines._parse("fuzzed", self.text)
        assert found.ram >= 0
        assert found.vram >= 0


class Report(Target):
    share = 0.5

    def plan_load(self) -> None:
        head = {"schema": SCHEMA, "version": "1", "machine": {}}
        run = {"config": {"a": 1}, "summary": {"x": {"low": 1}}, "memory": {"ram": {"peak": 1}}, "error": None}
        live = {**head, "kind": "live", "model": {}, "runs": [run]}
        replay = {**head, "kind": "replay", "replay": {"results": [{"policy": "lru", "tokens_per_second": [1, 2]}]}}
        self.sound = [json.dumps(live).encode(), json.dumps(replay).encode()]

    def damage(self, random: Random) -> None:
        (self.folder / "report.json").write_bytes(spoilt_json(random, random.choice(self.sound)))

    def open(self) -> None:
        rows(read_report(self.folder / "report.json"))


class Prompts(Target):
    share = 0.5

    def plan_load(self) -> None:
        given = [{"prompt": "a", "x": 1}, {"turns": ["b"]}, {"messages": [{"role": "user", "content": "c"}]}]
        self.good = b"\n".join(json.dumps(line).encode() for line in given)

    def damage(self, random: Random) -> None:
        self.file = self.folder / random.choice(("a.jsonl", "a.txt"))
        self.file.write_bytes(spoilt_lines(random, self.good))

    def open(self) -> None:
        assert all(prompt.text for prompt in read_prompts(self.file))


class Warm(Target):
    share = 0.3

    def plan_load(self) -> None:
        self.good = json.dumps([[0, 1, 2], [3], []]).encode()

    def damage(self, random: Random) -> None:
        (self.folder / "warm.json").write_bytes(spoilt_json(random, self.good))

    def open(self) -> None:
        found = read_warm(self.folder / "warm.json", [4, 4, 4])
        assert all(0 <= expert < 4 for layer in found for expert in layer)


TARGETS: dict[str, type[Target]] = {
    "answers": BatchAnswers,
    "bombs": Bombs,
    "composite-config": CompositeConfig,
    "config": Config,
    "conversation": Conversation,
    "generation-config": GenerationConfig,
    "gguf": Gguf,
    "gguf-metadata": GgufMetadata,
    "gguf-tokenizer": GgufTokenizer,
    "index": Index,
    "journal": PackingJournal,
    "lines": BatchLines,
    "manifest": StoreManifest,
    "profile": Profiles,
    "prompts": Prompts,
    "quantised": Quantised,
    "recording": Recording,
    "report": Report,
    "safetensors": SafetensorsHeader,
    "store-file": StoreFile,
    "tiktoken": Tiktoken,
    "tokenizer": Tokenizer,
    "trace": Trace,
    "warm": Warm,
}


def seed_of(target: str, number: int, seed: int) -> int:
    return zlib.crc32(f"{target}:{number}:{seed}".encode())
