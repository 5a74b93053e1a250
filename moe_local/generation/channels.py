"""How models mark their reasoning off from the answer, as response templates of transformers.

https://huggingface.co/docs/transformers/chat_response_parsing: a field for each region of an answer, with what opens
and what closes it; the field without an opening has the rest. A tokenizer may bring one of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

REASONING, ANSWER, HEADER = "reasoning_content", "content", "header"
REASONINGS = (REASONING, "reasoning", "thinking", "thoughts", "analysis")  # as published templates call it

_NEVER = r"(?!)"  # an anchor that is nowhere: what is given as the beginning is the answer's
_START = r"\A\s*"
_HARMONY = ("<|channel|>", "<|message|>")
_FINAL = ("<|return|>", "<|call|>")  # harmony's: nothing comes after them, whatever they close
_GEMMA = ("<|channel>", "<channel|>")
_TAGS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("<unused94>thought\n", "<unused95>"),
)


@dataclass(frozen=True)
class AnswerFormat:
    """How a model's answers are made up: regions, and the tokens by id whose texts open and close them."""

    template: Mapping[str, Any]
    marks: Mapping[int, str]

    def parser(self, tokenizer: PreTrainedTokenizerBase, prompt: str) -> Any:
        """transformers' parser, which has seen how the prompt ends. Raises ValueError for a template that is none."""
        begun = _beginning(self.template, prompt)
        try:
            return tokenizer.get_response_parser(dict(self.template), prefix=begun)
        except (AttributeError, TypeError) as error:
            raise ValueError(str(error)) from error

    def continues(self, token: str) -> bool:
        """Whether an answer may go on after this token: it closes a region that is not the answer's."""
        fields = self.template.get("fields")
        closing = [
            said
            for name, field in (fields.items() if isinstance(fields, dict) else ())
            if name in REASONINGS and isinstance(field, dict)
            for said in _strings([field.get("close"), field.get("close_pattern")])
        ]
        return token not in _FINAL and any(_names(each, token) for each in closing)


def answer_format(tokenizer: PreTrainedTokenizerBase, chat_template: str) -> AnswerFormat:
    """That of a model, by its tokenizer and the source of its chat template."""
    template = _response_template(tokenizer, chat_template)
    said = list(_strings(template.get("fields")))
    added: dict[int, Any] = getattr(tokenizer, "added_tokens_decoder", {})
    marks = {
        number: token.content
        for number, token in added.items()
        if token.content.strip() and any(_names(each, token.content) for each in said)
    }
    return AnswerFormat(template, marks)


def _response_template(tokenizer: PreTrainedTokenizerBase, chat_template: str) -> dict[str, Any]:
    """What a tokenizer declares, else what its tokens and the chat template tell."""
    declared = getattr(tokenizer, "response_template", None)
    if isinstance(declared, dict):
        return declared
    vocabulary = tokenizer.get_vocab()
    if all(mark in vocabulary for mark in _HARMONY):
        return _harmony()
    if all(mark in vocabulary for mark in _GEMMA):
        return _template({"open": "<|channel>thought\n", "close": "<channel|>"})
    known = [tag for tag in _TAGS if tag[0].strip() in vocabulary or tag[1] in vocabulary or tag[1] in chat_template]
    opening, closing = (known or _TAGS)[0]
    if opening in vocabulary:
        return _template({"open": opening, "close": closing})
    # Words that a model may well write about: they count at the beginning of an answer only.
    return _template({"open_pattern": _START + re.escape(opening), "close": closing})


def _template(reasoning: dict[str, str]) -> dict[str, Any]:
    return {"start_anchor_pattern": _NEVER, "fields": {REASONING: reasoning, ANSWER: {}}}


def _harmony() -> dict[str, Any]:
    """gpt-oss: `<|start|>assistant<|channel|>analysis<|message|>...<|end|>`, the last one `final` (or no channel).

    https://developers.openai.com/cookbook/articles/openai-harmony
    """
    ends = r"<\|end\|>|<\|call\|>|<\|return\|>|(?=<\|start\|>|<\|channel\|>)"
    return {
        "start_anchor_pattern": _NEVER,
        "fields": {
            REASONING: {
                "open_pattern": r"<\|channel\|>(?:analysis|commentary)[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>",
                "close_pattern": ends,
                "repeats": True,
            },
            HEADER: {"open": "<|start|>", "close_pattern": r"<\|message\|>|(?=<\|channel\|>)", "repeats": True},
            ANSWER: {"open_pattern": r"<\|channel\|>final[^<]*<\|message\|>", "close_pattern": ends, "repeats": True},
            "rest": {"close_pattern": r"<\|end\|>|<\|call\|>|<\|return\|>", "repeats": True},
        },
    }


def _beginning(template: Mapping[str, Any], prompt: str) -> str:
    """How much of a prompt the template is to see: all, or, of ours, a region's opening at the prompt's very end."""
    if template.get("start_anchor_pattern") != _NEVER:
        return prompt
    for name, field in template["fields"].items():
        opening = re.escape(field["open"]) if "open" in field else field.get("open_pattern", "").removeprefix(_START)
        rest = "[^<]*" if name == HEADER else r"\s*"
        if opening and (found := re.search(rf"(?:{opening}){rest}\Z", prompt)):
            return found[0]
    return ""


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _strings(each)


def _names(said: str, token: str) -> bool:
    """Whether a literal or a pattern has the token's text in it."""
    return token in said or re.escape(token) in said
