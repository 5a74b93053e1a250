"""How models mark their reasoning off from the answer, as response templates of transformers.

https://huggingface.co/docs/transformers/chat_response_parsing: a field for each region of an answer, with what opens
and what closes it; the field without an opening has the rest. A tokenizer may bring one of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

from transformers import PreTrainedTokenizerBase

REASONING, ANSWER, HEADER = "reasoning_content", "content", "header"
CALL = "tool_calls"  # a call of a tool, where it has a region of its own
UNOPENED = "answer_after"  # what follows a mark that closes reasoning which nothing had opened

_NEVER = r"(?!)"  # an anchor that is nowhere: what is given as the beginning is the answer's
_START = r"\A\s*"
_SOLAR = ("<|think|>", "<|end|>", "<|begin|>", "<|content|>")
_SPLIT = re.compile(r"""split\(\s*['"](</[\w:]+>)['"]\s*\)""")  # in chat templates: what ends reasoning
_TEXT = ("open", "open_pattern", "close", "close_pattern", "repeats")  # of a field, what tells regions apart
_HARMONY = ("<|channel|>", "<|message|>")
_FINAL = ("<|return|>", "<|call|>")  # harmony's: nothing comes after them, whatever they close
_GEMMA = ("<|channel>", "<channel|>")
_TAGS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("<longcat_think>", "</longcat_think>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("<unused94>thought\n", "<unused95>"),
)


_known: WeakKeyDictionary[PreTrainedTokenizerBase, dict[str, AnswerFormat]] = WeakKeyDictionary()


@dataclass(frozen=True)
class AnswerFormat:
    """How a model's answers are made up: regions, and the tokens by id whose texts open and close them."""

    template: Mapping[str, Any]
    marks: Mapping[int, str]

    def parser(self, tokenizer: PreTrainedTokenizerBase, prompt: str) -> Any:
        """transformers' parser, which has seen how the prompt ends. Raises ValueError for a template that is none."""
        try:
            begun = _beginning(self.template, prompt)
            return tokenizer.get_response_parser(dict(self.template), prefix=begun)
        except (AttributeError, KeyError, TypeError, re.error) as error:
            raise ValueError(str(error)) from error

    @property
    def answers_once(self) -> bool:
        """Whether the answer is marked off as well, so that it is over when its region closes."""
        return self.template.get("start_anchor_pattern") == _NEVER and bool(self.template["fields"].get(ANSWER))

    def with_calls(self) -> AnswerFormat:
        """With regions for calls of tools, where the format has them."""
        return replace(self, template=_harmony(calls=True)) if self.template == _harmony() else self

    @property
    def has_channels(self) -> bool:
        """Whether it is gpt-oss's."""
        return self.template in (_harmony(), _harmony(calls=True))

    def unclosed(self, prompt: str) -> str | None:
        """What closes the reasoning that a prompt's end has opened; None where it has opened none."""
        reasoning = self.template.get("fields", {}).get(REASONING)
        closing = reasoning.get("close") if isinstance(reasoning, dict) else None
        begun = self.template.get("start_anchor_pattern") == _NEVER and _beginning(self.template, prompt)
        return closing if begun and isinstance(closing, str) else None

    def continues(self, token: str) -> bool:
        """Whether an answer may go on after this token: it closes a region that is not the answer's."""
        fields = self.template.get("fields")
        closing = [
            said
            for name, field in (fields.items() if isinstance(fields, dict) else ())
            if is_reasoning(name) and isinstance(field, dict)
            for said in _strings([field.get("close"), field.get("close_pattern")])
        ]
        return token not in _FINAL and any(_names(each, token) for each in closing)


def is_reasoning(field: str) -> bool:
    """Whether a field, as templates call it, has reasoning: `reasoning_content`, `thinking`, `thoughts` ..."""
    return any(word in field.lower() for word in ("reason", "think", "thought", "analysis"))


def answer_format(tokenizer: PreTrainedTokenizerBase, chat_template: str) -> AnswerFormat:
    """That of a model, by its tokenizer and the source of its chat template.

    Found once for a tokenizer and a template: a vocabulary of 150,000 words takes a while to be looked through.
    """
    known = _known.setdefault(tokenizer, {})
    if chat_template not in known:
        known[chat_template] = _found_format(tokenizer, chat_template)
    return known[chat_template]


def _found_format(tokenizer: PreTrainedTokenizerBase, chat_template: str) -> AnswerFormat:
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
        return _of_text(declared)
    vocabulary = tokenizer.get_vocab()
    if all(mark in vocabulary for mark in _HARMONY):
        return _harmony()
    if all(mark in vocabulary for mark in _SOLAR):
        return _solar()
    if all(mark in vocabulary for mark in _GEMMA):
        return _template({"open": "<|channel>thought\n", "close": "<channel|>"})
    split = [(f"<{closing[2:]}", closing) for closing in _SPLIT.findall(chat_template)]
    known = [tag for tag in _TAGS if tag[0].strip() in vocabulary or tag[1] in vocabulary or tag[1] in chat_template]
    opening, closing = (split or known or _TAGS)[0]
    if opening in vocabulary:
        opened = {"open": opening, "close": closing}
    else:  # words that a model may well write about: they count at the beginning of an answer only
        opened = {"open_pattern": _START + re.escape(opening), "close": closing}
    return _template(opened, unopened=closing if split or closing in vocabulary else None)


def _template(reasoning: dict[str, str], unopened: str | None = None) -> dict[str, Any]:
    after = {} if unopened is None else {UNOPENED: {"open": unopened}}
    return {"start_anchor_pattern": _NEVER, "fields": {REASONING: reasoning, **after, ANSWER: {}}}


def _of_text(declared: dict[str, Any]) -> dict[str, Any]:
    """A declared template without what it makes of a region: only the regions' texts are of use here."""
    fields = declared.get("fields")
    if not isinstance(fields, dict):
        return declared
    bare = {
        name: {key: value for key, value in field.items() if key in _TEXT} | {"repeats": True}
        for name, field in fields.items()
        if isinstance(field, dict)
    }
    # A pattern's names are for what was left out.
    for field in bare.values():
        for key in ("open_pattern", "close_pattern"):
            if isinstance(field.get(key), str):
                field[key] = re.sub(r"\(\?P<\w+>", "(?:", field[key])
    return {key: value for key, value in declared.items() if key != "defaults"} | {"fields": bare}


def _solar() -> dict[str, Any]:
    """Solar Open: `<|think|>...<|end|><|begin|>assistant<|content|>...<|flush|>`."""
    return {
        "start_anchor_pattern": _NEVER,
        "fields": {
            REASONING: {"open": "<|think|>", "close": "<|end|>", "repeats": True},
            HEADER: {"open": "<|begin|>", "close_pattern": r"(?=<\|think\|>|<\|content\|>)", "repeats": True},
            ANSWER: {"open": "<|content|>", "close_pattern": r"<\|flush\|>|<\|calls\|>", "repeats": True},
            "rest": {"repeats": True},
        },
    }


def _harmony(*, calls: bool = False) -> dict[str, Any]:
    """gpt-oss: `<|start|>assistant<|channel|>analysis<|message|>...<|end|>`, the last one `final` (or no channel).

    https://developers.openai.com/cookbook/articles/openai-harmony
    """
    ends = r"<\|end\|>|<\|call\|>|<\|return\|>|(?=<\|start\|>|<\|channel\|>)"
    rest = r"[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>"
    to = r"[^<]*\bto="  # whom a message is for
    region = {"open_pattern": rf"<\|channel\|>(?={to})", "close_pattern": ends, "repeats": True}
    other = f"(?!{to})" if calls else ""
    return {
        "start_anchor_pattern": _NEVER,
        "fields": {
            **({CALL: region} if calls else {}),
            REASONING: {
                "open_pattern": rf"<\|channel\|>(?!\s*final){other}{rest}",
                "close_pattern": ends,
                "repeats": True,
            },
            HEADER: {"open": "<|start|>", "close_pattern": r"<\|message\|>|(?=<\|channel\|>)", "repeats": True},
            ANSWER: {"open_pattern": rf"<\|channel\|>\s*final{rest}", "close_pattern": ends, "repeats": True},
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
