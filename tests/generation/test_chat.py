"""Conversations."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from moe_local import Options, Sampling
from moe_local.engine import Engine, load
from moe_local.errors import CheckpointError, MoeLocalError
from moe_local.generation.chat import ChatSession

GREEDY = Sampling(max_new_tokens=8, temperature=0)


@pytest.fixture(scope="module")
def engine(qwen: Path) -> Iterator[Engine]:
    with load(qwen, Options(context=256)) as engine:
        yield engine


@pytest.fixture
def session(engine: Engine) -> ChatSession:
    return engine.chat(GREEDY, system="Be brief.")


def test_turns_reuse_the_kv_cache(session: ChatSession) -> None:
    first = session.send("Hello")
    second = session.send("And then?")
    assert first.cached_tokens == 0
    assert second.cached_tokens >= first.prompt_tokens
    assert [message["role"] for message in session.messages] == ["system", *["user", "assistant"] * 2]


def test_regenerating_greedily_says_the_same(session: ChatSession) -> None:
    first = session.send("Hello")
    again = session.regenerate()
    assert again.text == first.text
    assert len(session.messages) == 3


def test_nothing_to_regenerate(session: ChatSession) -> None:
    with pytest.raises(MoeLocalError, match="no answer"):
        session.regenerate()


def test_reset_and_system(session: ChatSession) -> None:
    session.send("Hello")
    session.reset()
    assert session.messages == [{"role": "system", "content": "Be brief."}]
    session.set_system("Be long.")
    assert session.system == "Be long."
    session.set_system(None)
    assert session.messages == []


def test_a_saved_conversation_goes_on(engine: Engine, session: ChatSession, tmp_path: Path) -> None:
    session.send("Hello")
    session.save(tmp_path / "talk.json")
    other = engine.chat(GREEDY)
    other.load(tmp_path / "talk.json")
    assert other.messages == session.messages
    assert other.send("More").text == session.send("More").text
    assert [file.name for file in tmp_path.iterdir()] == ["talk.json"]


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "{}",
        "[1]",
        "[" * 100_000,
        json.dumps([{"role": "robot", "content": "x"}]),
        json.dumps([{"role": "user"}]),
    ],
)
def test_other_files_are_refused(session: ChatSession, tmp_path: Path, content: str) -> None:
    (tmp_path / "bad.json").write_text(content)
    before = list(session.messages)
    with pytest.raises(MoeLocalError, match=r"bad\.json"):
        session.load(tmp_path / "bad.json")
    assert session.messages == before


def test_files_that_cannot_be(session: ChatSession, tmp_path: Path) -> None:
    with pytest.raises(MoeLocalError, match="cannot read"):
        session.load(tmp_path / "absent.json")
    with pytest.raises(MoeLocalError, match="cannot write"):
        session.save(tmp_path / "no" / "folder.json")
    for name in (Path(), Path("/"), tmp_path, tmp_path / "a\0b"):
        with pytest.raises(MoeLocalError, match="cannot write"):
            session.save(name)
    (tmp_path / "surrogate.json").write_text('[{"role": "user", "content": "\\udce9"}]')
    session.load(tmp_path / "surrogate.json")
    with pytest.raises(MoeLocalError, match="cannot write"):
        session.save(tmp_path / "again.json")
    with pytest.raises(MoeLocalError, match="not Unicode"):
        session.send("hello")
    assert [file.name for file in tmp_path.iterdir()] == ["surrogate.json"]


def test_an_error_leaves_the_conversation_as_it_was(session: ChatSession) -> None:
    session.send("Hello")
    before = list(session.messages)
    with pytest.raises(MoeLocalError, match="context"):
        session.send("long " * 300)
    assert session.messages == before
    session.send("short")


def test_a_model_without_a_template_does_not_chat(engine: Engine) -> None:
    tokenizer = engine.generator.tokenizer
    template, tokenizer.chat_template = tokenizer.chat_template, None
    try:
        with pytest.raises(CheckpointError, match="no chat template"):
            engine.chat().send("Hello")
    finally:
        tokenizer.chat_template = template
