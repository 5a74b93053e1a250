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
from moe_local.generation.generate import Generation
from moe_local.testing import architecture, write_tiny_checkpoint

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


def test_undo_forgets_the_last_exchange(session: ChatSession) -> None:
    first = session.send("Hello")
    second = session.send("And then?")
    session.undo()
    assert [message["role"] for message in session.messages] == ["system", "user", "assistant"]
    again = session.send("And then?")
    assert (again.token_ids, again.cached_tokens > first.prompt_tokens) == (second.token_ids, True)
    session.undo()
    session.undo()
    assert session.messages == [{"role": "system", "content": "Be brief."}]
    with pytest.raises(MoeLocalError, match="nothing to undo"):
        session.undo()


def test_undo_forgets_a_message_without_an_answer(session: ChatSession) -> None:
    session.messages.append({"role": "user", "content": "Hello"})
    session.undo()
    assert session.messages == [{"role": "system", "content": "Be brief."}]


def asked_until_full(session: ChatSession) -> tuple[str, Generation]:
    """Goes on until turns are left out; the message that it took, and its answer."""
    for turn in range(100):
        message = f"{turn} the hen and the other " * (1 + turn % 3)
        answer = session.send(message)
        if session._left_out:
            return message, answer
    raise AssertionError("the context never filled")


@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss", "qwen3_next"])  # plain, sliding-window, recurrent states
def test_what_a_full_context_leaves_is_answered_as_in_a_new_conversation(name: str, tmp_path: Path) -> None:
    checkpoint = write_tiny_checkpoint(architecture(name), tmp_path / name)
    notes: list[str] = []
    with load(checkpoint, Options(device="cpu", context=256)) as engine:
        engine.generator.on_notice = notes.append
        session = engine.chat(GREEDY, system="Be brief.")
        message, answer = asked_until_full(session)
        assert any("oldest" in note for note in notes)
        fresh = engine.chat(GREEDY)
        fresh.messages = [session.messages[0], *session.messages[1 + session._left_out : -2]]
        alone = fresh.send(message)
        assert alone.prompt_tokens == answer.prompt_tokens < 256 // 2
        assert alone.token_ids == answer.token_ids
        # What follows goes on from what was computed, and still says the same.
        assert session.send("More").token_ids == fresh.send("More").token_ids
        assert session.regenerate().token_ids == fresh.regenerate().token_ids


def test_without_context_shift_a_full_context_is_an_error(session: ChatSession) -> None:
    session.context_shift = False
    with pytest.raises(MoeLocalError, match="the message has more tokens"):
        session.send("long " * 300)
    with pytest.raises(MoeLocalError, match="/clear forgets it and /undo its last exchange") as full:
        asked_until_full(session)
    assert "larger --context" in str(full.value)
    before = list(session.messages)
    session.undo()
    assert len(session.messages) == len(before) - 2
    assert session.send("Hi").text
    session.reset()
    assert session.send("Hi").cached_tokens == 0


def test_undoing_a_long_message_brings_back_what_it_drove_out(session: ChatSession) -> None:
    session.send("Hello")
    before = session.send("Hi").prompt_tokens
    session.send("a b c d e f g h " * 14)
    assert session._left_out
    session.undo()
    assert session.send("Hi").prompt_tokens > before


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
