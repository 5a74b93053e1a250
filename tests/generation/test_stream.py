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
SOLAR = tokenizer_with("<|think|>", "<|end|>", "<|begin|>", "<|content|>", "<|flush|>", "<|calls|>")
LONGCAT = tokenizer_with("<longcat_think>", "</longcat_think>")
SPLIT = tokenizer_with(template="{{ messages[0].content.split('</reflect>')[-1] }}")
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
    "harmony, a constraint": (HARMONY, TURN, "<|channel|>final <|constrain|>json<|message|>{}<|return|>", "", "{}"),
    "harmony, a recipient first": (HARMONY, TURN, " to=user<|channel|>final<|message|>Yes.<|return|>", "", "Yes."),
    "harmony, another channel": (HARMONY, TURN, f"<|channel|>note<|message|>hm<|end|>{TURN}{FINAL}Y", "hm", "Y"),
    "harmony, it goes on": (HARMONY, TURN, f"{FINAL}Yes.<|end|><|start|>user<|message|>noise", "", "Yes."),
    "harmony, no mark at all": (HARMONY, TURN, "Four or five.", "", "Four or five."),
    "solar": (SOLAR, "", "<|think|>hm<|end|><|begin|>assistant<|content|>It is 42.<|flush|>", "hm", "It is 42."),
    "solar, no thoughts": (SOLAR, "<|begin|>assistant", "<|content|>It is 42.<|flush|>", "", "It is 42."),
    "closed and never opened": (THINK, "", "hm\n</think>\n\nIt is 42.", "hm", "It is 42."),
    "closed, as the template splits": (SPLIT, "", "hm</reflect>It is 42.", "hm", "It is 42."),
    "opened, as the template splits": (SPLIT, "", "<reflect>hm</reflect>It is 42.", "hm", "It is 42."),
    "no thoughts": (THINK, "", "<think>\n\n</think>\n\nBecause.", "", "Because."),
    "longcat": (LONGCAT, "", "<longcat_think>hm</longcat_think>It is 42.", "hm", "It is 42."),
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
    handed = "".join(pieces["text"])
    if case.startswith("closed"):  # what was handed on before the mark came cannot be taken back
        assert handed == reasoning + answer or handed == f"{reasoning}\n{answer}"
    else:
        assert handed == answer and "".join(pieces["reasoning"]).strip() == reasoning


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
    ("said", "reasoning", "answer"),
    [
        ("hi [TC{bad}json].rest", "", "hi {bad}json.rest"),
        ("[TC" + "[" * 3000, "", "[" * 3000),
        ("(why)Because <", "why", "Because <"),
    ],
)
def test_only_the_texts_of_a_declared_template_count(said: str, reasoning: str, answer: str) -> None:
    """Not what it would make of them: nothing is lost where that fails."""
    tokenizer = tokenizer_with()
    tokenizer.response_template = {
        "start_anchor": "<|assistant|>",
        "fields": {
            "tool_calls": {"open": "[TC", "close": "]", "content": "json"},
            "reasoning_text": {"open_pattern": r"(?P<mark>\()", "close": ")", "transform": {"a": "{mark}"}},
            "must": {"open": "{{", "close": "}}", "optional": False},
            "content": {},
        },
    }
    stream = _stream(tokenizer, "<|assistant|>")
    for token in _ids(tokenizer, said):
        stream.add(token)
    stream.end()
    assert (stream.reasoning, stream.text) == (reasoning, answer)


@pytest.mark.parametrize(
    "declared",
    [
        {"start_anchor_pattern": "(?!)"},
        {"start_anchor_pattern": "(?!)", "fields": {"content": "x"}},
        {},
        {"fields": 5},
        {"fields": {"a": {"open_pattern": "("}}},
        {"fields": {"a": {}}},
    ],
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


@pytest.mark.parametrize("said", ["so", "<think>why</think>so"])
def test_what_those_that_are_told_raise_is_raised(said: str) -> None:
    """A full disk behind stdout, a reader that went away: not the parser's failures."""

    def refuse(piece: str) -> None:
        raise OSError("no room")

    stream = _stream(THINK, "", on_text=refuse)
    with pytest.raises(OSError, match="no room"):
        for token in _ids(THINK, f"{said} "):
            stream.add(token)
        stream.end()
