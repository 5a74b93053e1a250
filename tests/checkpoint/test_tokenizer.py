"""Tokenizers out of GGUF files, by the rule that the file names."""

from __future__ import annotations

import base64
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from moe_local.checkpoint.files import Checkpoint
from moe_local.checkpoint.tokenizer import load_tokenizer
from moe_local.errors import CheckpointError
from moe_local.testing import architecture
from moe_local.testing.gguf import write_tiny_gguf

TEXT = "the 12345 hens\n\n  and"


def _load(tmp_path: Path, splitting: str) -> tuple[list[str], tuple[str, ...]]:
    file = tmp_path / "model.gguf"
    write_tiny_gguf(architecture("qwen3_moe"), file, "F32", splitting=splitting)
    tokenizer, notes = load_tokenizer(Checkpoint.open(file))
    assert tokenizer is not None
    words = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(TEXT)
    return [word for word, _ in words], notes


@pytest.mark.parametrize(
    ("splitting", "digits"),
    [("gpt-2", ["Ġ12345"]), ("qwen2", ["1", "2", "3", "4", "5"]), ("glm4", ["123", "45"]), ("gpt-4o", ["123", "45"])],
)
def test_numbers_are_split_by_the_rule(splitting: str, digits: list[str], tmp_path: Path) -> None:
    words, notes = _load(tmp_path, splitting)
    assert [word for word in words if any(letter.isdigit() for letter in word)] == digits
    assert notes == ()


def test_an_unknown_rule_is_said(tmp_path: Path) -> None:
    _, notes = _load(tmp_path, "nonesuch")
    assert len(notes) == 1
    assert "'nonesuch'" in notes[0]


def test_none_where_there_is_none(qwen: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(qwen)
    elsewhere = Checkpoint(tmp_path, checkpoint.config, checkpoint.tensors)
    assert load_tokenizer(elsewhere) == (None, ())


KIMI = {
    "tokenizer_class": "TikTokenTokenizer",
    "auto_map": {"AutoTokenizer": ["tokenization_kimi.TikTokenTokenizer", None]},
    "added_tokens_decoder": {
        "258": {"content": "[BOS]", "special": True},
        "259": {"content": "<|im_end|>", "special": True},
        "262": {"content": "<think>", "special": False},
    },
    "bos_token": "[BOS]",
    "eos_token": {"content": "<|im_end|>"},
    "chat_template": "{{ messages[0].content }}<|im_end|>",
}


def _ranks(*more: bytes) -> bytes:
    tokens = [bytes([byte]) for byte in range(256)] + list(more)
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens))


def _tiktoken(
    qwen: Path, tmp_path: Path, ranks: bytes, settings: dict[str, Any], name: str = "tiktoken.model"
) -> Path:
    for file in qwen.iterdir():
        if not file.name.startswith(("tokenizer", "chat_template", "special")):
            shutil.copy(file, tmp_path)
    (tmp_path / name).write_bytes(ranks)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    return tmp_path


def test_tiktoken(qwen: Path, tmp_path: Path) -> None:
    """Ids are ranks; the tokens after them are where their numbers say; text is split by the rule of Kimi."""
    directory = _tiktoken(qwen, tmp_path, _ranks(b"he", b"ll"), KIMI)
    tokenizer, notes = load_tokenizer(Checkpoint.open(directory))
    assert tokenizer is not None
    assert notes == ()
    assert tokenizer("hello<|im_end|>")["input_ids"] == [256, 257, ord("o"), 259]
    assert tokenizer.convert_ids_to_tokens([258, 260, 262]) == ["[BOS]", "<|reserved_token_260|>", "<think>"]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (258, 259)
    assert tokenizer.decode([256, 257, 111, 262, 259], skip_special_tokens=True) == "hello<think>"
    text = "Ünïcödé 漢字 🙂\n\n12345 aB's"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    words = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("漢字kana helloWorld's 12345")
    assert [text for text, _ in words][1:] == ["kana", "Ġhello", "World's", "Ġ", "123", "45"]
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi<|im_end|>"


def test_tiktoken_runs_to_the_end(qwen: Path, tmp_path: Path) -> None:
    from moe_local import Options, Sampling, load
    from moe_local.store import first_use, pack

    (tmp_path / "model").mkdir()
    directory = _tiktoken(qwen, tmp_path / "model", _ranks(), KIMI)
    store = pack(first_use.plan(directory, first_use.choose()), tmp_path / "store")
    for where in (directory, store):
        with load(where, Options(device="cpu", context=64)) as engine:
            ids = engine.encode("hi", raw=True)
            assert ids == [ord("h"), ord("i")]
            assert engine.generate(ids, Sampling(max_new_tokens=2, temperature=0)).token_ids


@pytest.mark.parametrize(("kind", "digits"), [("QWenTokenizer", ["1", "2", "3", "4"]), ("Other", ["123", "4"])])
def test_tiktoken_of_others(qwen: Path, tmp_path: Path, kind: str, digits: list[str]) -> None:
    directory = _tiktoken(qwen, tmp_path, _ranks(), {"tokenizer_class": kind}, "qwen.tiktoken")
    tokenizer, notes = load_tokenizer(Checkpoint.open(directory))
    assert tokenizer is not None
    assert [word for word, _ in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("1234")] == digits
    assert bool(notes) == (kind == "Other")


BAD: dict[str, tuple[bytes, dict[str, Any], str]] = {
    "not base64": (b"a*b= 0\n", {}, "is damaged"),
    "no rank": (b"YQ==\n", {}, "is damaged"),
    "a gap": (b"YQ== 0\nYg== 2\n", {}, "gaps"),
    "twice": (b"YQ== 0\nYQ== 1\n", {}, "gaps"),
    "an id far away": (_ranks(), {"added_tokens_decoder": {"9999999": {"content": "x"}}}, "far beyond"),
    "a token of nothing": (_ranks(), {"added_tokens_decoder": {"256": {"content": 5}}}, "damaged tokens"),
    "tokens that are a list": (_ranks(), {"added_tokens_decoder": [1]}, "damaged tokens"),
}


@pytest.mark.parametrize("case", BAD)
def test_tiktoken_files_are_checked(qwen: Path, tmp_path: Path, case: str) -> None:
    ranks, settings, said = BAD[case]
    tokenizer, notes = load_tokenizer(Checkpoint.open(_tiktoken(qwen, tmp_path, ranks, settings)))
    assert tokenizer is None
    assert said in notes[0]


def test_sentencepiece_without_its_library(qwen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from moe_local import Options, load
    from moe_local.checkpoint import tokenizer as module

    directory = _tiktoken(qwen, tmp_path, b"\n", {"tokenizer_class": "LlamaTokenizer"}, "tokenizer.model")
    monkeypatch.setattr(module, "_installed", lambda name: name != "sentencepiece")
    said = r"needs sentencepiece.*moe-local\[tokenizers\]"
    with load(directory, Options(device="cpu", context=64)) as engine, pytest.raises(CheckpointError, match=said):
        engine.encode("hi")


def test_sentencepiece(qwen: Path, tmp_path: Path) -> None:
    """A model of pieces trained here, against the library's own pieces."""
    sentencepiece = pytest.importorskip("sentencepiece")
    text = tmp_path / "text"
    text.write_text("the rain in spain stays mainly in the plain\nhello there, general\n" * 50)
    directory = _tiktoken(
        qwen, tmp_path, b"", {"tokenizer_class": "LlamaTokenizer", "legacy": False}, "tokenizer.model"
    )
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(tmp_path / "tokenizer"), vocab_size=300, model_type="bpe",
        byte_fallback=True, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    (tmp_path / "tokenizer.vocab").unlink()
    tokenizer, notes = load_tokenizer(Checkpoint.open(directory))
    assert tokenizer is not None
    assert notes == ()
    processor = sentencepiece.SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))
    for line in ("the rain", "hello spain", "漢"):
        assert tokenizer(line, add_special_tokens=False)["input_ids"] == processor.encode(line)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_is_not_waited_for(qwen: Path, tmp_path: Path) -> None:
    directory = _tiktoken(qwen, tmp_path, _ranks(), KIMI)
    os.mkfifo(directory / "tokenizer.json")
    tokenizer, notes = load_tokenizer(Checkpoint.open(directory))
    assert tokenizer is None
    assert "not a regular file" in notes[0]
