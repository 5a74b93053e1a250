"""Reasoning told from answers, however a model marks it off, and wherever the pieces are cut."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_local.generation.channels import answer_format
from moe_local.generation.stream import AnswerStream
from tests.generation.speaking import tokenizer_with

HARMONY = tokenizer_with(
    "<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>", "<|call|>", "<|constrain|>"
)
THINK = tokenizer_with(plain=("<think>", "</think>"))
WORDS = tokenizer_with(template="{{ '</think>' in messages }}")
PLAIN = tokenizer_with()
MISTRAL = tokenizer_with("[THINK]", "[/THINK]")
GEMMA = tokenizer_with("<|channel>", "<channel|>")
COHERE = tokenizer_with("<|START_THINKING|>", "<|END_THINKING|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>")
TURN, FINAL = "<|start|>assistant", "<|channel|>final<|message|>"
ANALYSIS = "<|channel|>analysis<|message|>"
TOOL = "<|channel|>commentary to=functions.f <|constrain|>json<|message|>"

CASES: dict[str, tuple[Any, str, str, str, str]] = {  # tokenizer, end of the prompt, said -> reasoning, answer
    "harmony": (HARMONY, TURN, f"{ANALYSIS}Let me<|end|>{TURN}{FINAL}It is 42.<|return|>", "Let me", "It is 42."),
    "harmony, answer only": (HARMONY, TURN, f"{FINAL}It is 42.<|return|>", "", "It is 42."),
    "harmony, begun by the prompt": (HARMONY, TURN + ANALYSIS, f"Hm.<|end|>{TURN}{FINAL}Yes", "Hm.", "Yes"),
    "harmony, final begun": (HARMONY, TURN + FINAL, "Yes.<|return|>", "", "Yes."),
    "harmony, a tool is called": (HARMONY, TURN, TOOL + '{"a": 1}<|call|>', '{"a": 1}', ""),
    "harmony, no channel": (HARMONY, TURN, "<|message|>Plainly.<|return|>", "", "Plainly."),
    "tags": (THINK, "", "<think>\nwhy\n</think>\n\nBecause.", "why", "Because."),
    "tags, begun by the prompt": (THINK, "<|assistant|><think>\n", "why</think>Because.", "why", "Because."),
    "tags, closed by the prompt": (THINK, "<|assistant|><think>\n\n</think>\n\n", "Because.", "", "Because."),
    "tags of no token": (WORDS, "", "<think>why</think> Because.", "why", "Because."),
    "tags that nobody announced": (PLAIN, "", "<think>why</think>Because.", "why", "Because."),
    "tags in the middle of an answer": (PLAIN, "", "Use <think> and </think>.", "", "Use <think> and </think>."),
    "it never ends": (THINK, "", "<think>why oh why", "why oh why", ""),
    "brackets": (MISTRAL, "[INST] hi [/INST]", "[THINK]why[/THINK]Because.", "why", "Because."),
    "gemma": (GEMMA, "", "<|channel>thought\nwhy<channel|>Because.", "why", "Because."),
    "cohere": (COHERE, "", "<|START_THINKING|>Hm<|END_THINKING|><|START_RESPONSE|>So<|END_RESPONSE|>", "Hm", "So"),
}  # fmt: skip


def _stream(tokenizer: Any, prompt: str, **more: Any) -> AnswerStream:
    format = answer_format(tokenizer, tokenizer.chat_template)
    return AnswerStream(tokenizer, format=format, prompt=_ids(tokenizer, prompt), **more)


def _ids(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


@pytest.mark.parametrize("case", CASES)
def test_reasoning_is_told_from_the_answer(case: str) -> None:
    tokenizer, prompt, said, reasoning, answer = CASES[case]
    pieces: dict[str, list[str]] = {"reasoning": [], "text": []}
    stream = _stream(tokenizer, prompt, on_text=pieces["text"].append, on_reasoning=pieces["reasoning"].append)
    for token in _ids(tokenizer, said):
        stream.add(token)
    stream.end()
    assert (stream.reasoning, stream.text) == (reasoning, answer)
    assert "".join(pieces["text"]) == answer and "".join(pieces["reasoning"]).strip() == reasoning


def test_a_template_that_the_tokenizer_declares() -> None:
    tokenizer = tokenizer_with("<<", ">>")
    tokenizer.response_template = {
        "start_anchor": "<|assistant|>",
        "fields": {"thinking": {"open": "<<", "close": ">>"}, "content": {}},
    }
    stream = _stream(tokenizer, "<|user|>hi<|assistant|><<")
    for token in _ids(tokenizer, "why>>Because."):
        stream.add(token)
    stream.end()
    assert (stream.reasoning, stream.text) == ("why", "Because.")


@pytest.mark.parametrize(
    "declared", [{}, {"fields": 5}, {"fields": {"a": {"open_pattern": "("}}}, {"fields": {"a": {}}}]
)
def test_a_template_that_makes_no_sense_leaves_the_text(declared: dict[str, Any]) -> None:
    tokenizer = tokenizer_with()
    tokenizer.response_template = declared
    stream = _stream(tokenizer, "hi")
    for token in _ids(tokenizer, "Because."):
        stream.add(token)
    stream.end()
    assert (stream.reasoning, stream.text) == ("", "Because.")


@given(st.text(max_size=40), st.sampled_from([HARMONY, THINK, WORDS, PLAIN]))
def test_no_answer_without_marks_is_changed(text: str, tokenizer: Any) -> None:
    ids = _ids(tokenizer, text)
    if "<" in text or text.strip() != text or any(mark in ids for mark in tokenizer.added_tokens_decoder):
        return
    stream = _stream(tokenizer, "")
    for token in ids:
        stream.add(token)
    stream.end()
    assert stream.text == tokenizer.decode(ids, skip_special_tokens=True)


def test_stop_strings_count_in_the_answer_only() -> None:
    stream = _stream(THINK, "", stop=("stop",))
    for token in _ids(THINK, "<think>do not stop</think>go stop"):
        assert not stream.stopped
        stream.add(token)
        if stream.pending_stop():
            break
    stream.end()
    assert (stream.reasoning, stream.text, stream.stopped) == ("do not stop", "go ", True)
