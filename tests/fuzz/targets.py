"""Every target by name. A target is a class in one of the files beside this one, and a line here."""

from __future__ import annotations

import zlib

from tests.fuzz.bench_targets import Profiles, Prompts, Recording, Report, Trace
from tests.fuzz.bombs import Bombs
from tests.fuzz.checkpoint_targets import (
    CompositeConfig,
    Config,
    GenerationConfig,
    Index,
    Quantised,
    SafetensorsHeader,
    Tiktoken,
    Tokenizer,
)
from tests.fuzz.gguf_targets import Gguf, GgufMetadata, GgufTokenizer
from tests.fuzz.job_targets import BatchAnswers, BatchLines, Conversation
from tests.fuzz.store_targets import PackingJournal, StoreFile, StoreManifest, Warm
from tests.fuzz.target import Target

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
