"""A packed store, the journal of a packing, and the hot experts that are remembered."""

from __future__ import annotations

import json
import shutil
from random import Random

from moe_local.experts.warm import _read as read_warm
from moe_local.store import MANIFEST, first_use, pack, verify
from moe_local.store.body import digest
from moe_local.store.progress import JOURNAL, Journal
from moe_local.testing import architecture, write_tiny_checkpoint
from tests.fuzz.mutate import damaged, early, spoilt, spoilt_json, spoilt_lines
from tests.fuzz.target import SMALL, Target, run_through


class StoreManifest(Target):
    """A manifest whose digest fits."""

    share = 1.5

    def prepare(self) -> None:
        model = write_tiny_checkpoint(architecture("qwen3_moe"), self.folder / "model", max_shard_bytes=SMALL)
        self.store = pack(first_use.plan(model, first_use.choose("int4", 32, "int8")), self.folder / "store")
        self.file = self.store / MANIFEST
        self.body = json.loads(self.file.read_text())
        self.body.pop("digest")

    def damage(self, random: Random) -> None:
        body = spoilt(random, self.body)
        stamp = {"digest": digest(body)} if isinstance(body, dict) else {}
        text = json.dumps({**stamp, **body} if isinstance(body, dict) else body)
        self.file.write_text(text if random.random() < 0.95 else damaged(random, text.encode()).decode("latin-1"))

    def open(self) -> None:
        if self.file.stat().st_mtime_ns % 4 == 0:
            verify(self.store)
        run_through(self.store)


class StoreFile(StoreManifest):
    """One of its other files, and nobody made anything fit."""

    share = 1.0

    def prepare(self) -> None:
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
    def prepare(self) -> None:
        self.identity = {"fingerprint": "a" * 64, "packing": "int4-g32, dense int8"}
        lines = [
            self.identity,
            *({"file": f"experts-{n:05}.safetensors", "checksums": [1, 2], "change": [0.5, 2.0]} for n in range(3)),
        ]
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
        assert all((self.folder / "partial" / name).is_file() for name in {*journal.done, *journal.changes})


class Warm(Target):
    share = 0.3

    def prepare(self) -> None:
        self.good = json.dumps([[0, 1, 2], [3], []]).encode()

    def damage(self, random: Random) -> None:
        (self.folder / "warm.json").write_bytes(spoilt_json(random, self.good))

    def open(self) -> None:
        found = read_warm(self.folder / "warm.json", [4, 4, 4])
        assert all(0 <= expert < 4 for layer in found for expert in layer)
