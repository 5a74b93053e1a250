"""What a user hands in beside a model: a job's lines and its answers, a saved conversation."""

from __future__ import annotations

import io
import json
from random import Random
from types import SimpleNamespace
from typing import Any, cast

from moe_local.generation.chat import ChatSession
from moe_local.generation.sampling import Sampling
from moe_local.jobs.files import AnswerFile, Source, Terms
from moe_local.jobs.line import Defaults
from moe_local.jobs.lines import FORMATS, guess_format, understand
from tests.fuzz.mutate import spoilt_json, spoilt_lines
from tests.fuzz.target import Target


class BatchAnswers(Target):
    """What a batch job left: its answers, and the note beside them."""

    terms = Terms("0" * 64, "model", {"temperature": 0.5, "seed": 1})

    def prepare(self) -> None:
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

    def prepare(self) -> None:
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


class Conversation(Target):
    def prepare(self) -> None:
        said = [("system", "s"), ("user", "hi"), ("assistant", "yes"), ("user", "and")]
        self.good = json.dumps([{"role": role, "content": text} for role, text in said]).encode()

    def damage(self, random: Random) -> None:
        (self.folder / "saved.json").write_bytes(spoilt_json(random, self.good))

    def open(self) -> None:
        model = SimpleNamespace(config=SimpleNamespace(is_encoder_decoder=False))
        session = ChatSession(cast(Any, SimpleNamespace(model=model)), Sampling())  # nothing is generated
        session.load(self.folder / "saved.json")
        assert all(isinstance(message["content"], str) for message in session.messages)
