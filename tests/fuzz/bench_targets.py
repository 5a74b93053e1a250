"""What `bench` and `plan` read: traces, recordings, reports, prompts, machines."""

from __future__ import annotations

import io
import json
import lzma
from random import Random
from typing import Any, cast

import numpy as np

from moe_local.bench.report import SCHEMA, lines, read_report
from moe_local.bench.trace import read_trace
from moe_local.bench.workload import read_prompts
from moe_local.planning import machines
from tests.fuzz.mutate import damaged, spoilt_json, spoilt_lines
from tests.fuzz.target import Target


class Trace(Target):
    share = 1.5

    def prepare(self) -> None:
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

    def prepare(self) -> None:
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


class Profiles(Target):
    def prepare(self) -> None:
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

    def prepare(self) -> None:
        head = {"schema": SCHEMA, "version": "1", "machine": {}}
        run = {"config": {"a": 1}, "summary": {"x": {"low": 1}}, "memory": {"ram": {"peak": 1}}, "error": None}
        live = {**head, "kind": "live", "model": {}, "runs": [run]}
        replay = {**head, "kind": "replay", "replay": {"results": [{"policy": "lru", "tokens_per_second": [1, 2]}]}}
        self.sound = [json.dumps(live).encode(), json.dumps(replay).encode()]

    def damage(self, random: Random) -> None:
        (self.folder / "report.json").write_bytes(spoilt_json(random, random.choice(self.sound)))

    def open(self) -> None:
        lines(read_report(self.folder / "report.json"))


class Prompts(Target):
    share = 0.5

    def prepare(self) -> None:
        given = [{"prompt": "a", "x": 1}, {"turns": ["b"]}, {"messages": [{"role": "user", "content": "c"}]}]
        self.good = b"\n".join(json.dumps(line).encode() for line in given)

    def damage(self, random: Random) -> None:
        self.file = self.folder / random.choice(("a.jsonl", "a.txt"))
        self.file.write_bytes(spoilt_lines(random, self.good))

    def open(self) -> None:
        assert all(prompt.text for prompt in read_prompts(self.file))
