"""Answers that keep to a JSON schema or a grammar: what may come next, by llguidance.

https://github.com/guidance-ai/llguidance: a mask over the vocabulary for each token, in tens of microseconds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from moe_local.errors import MoeLocalError, UnsupportedError
from moe_local.generation.channels import AnswerFormat

_NO_LIBRARY = "answers that keep to a grammar need llguidance"
_WORD = 32  # bits
# Of a grammar: understanding n optional properties takes time by their square, a second or two with 4,000 of them.
_SYMBOLS = 30_000


def json_rule(schema: Mapping[str, Any] | bool) -> str:
    """JSON of a schema in a Lark grammar, without white space that says nothing."""
    told = {"x-guidance": {"whitespace_flexible": False}}
    return f"%json {json.dumps({**schema, **told} if isinstance(schema, Mapping) else schema)}"


def mark(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """A text in a Lark grammar: as the token that it is, if that is a special one."""
    token = tokenizer.get_vocab().get(text)
    known: Mapping[int, Any] = getattr(tokenizer, "added_tokens_decoder", {})
    if token is not None and token in known and known[token].special:
        return f"<[{token}]>"
    return quoted(text)


def quoted(text: str) -> str:
    """A text in a Lark grammar."""
    return json.dumps(text, ensure_ascii=False)


def after_reasoning(tokenizer: PreTrainedTokenizerBase, answers: AnswerFormat, prompt: str, body: str) -> str:
    """A grammar of answers to a prompt that ends so, whose rule `body` is free to come after reasoning.

    gpt-oss reasons in a channel of its own, if it does; others where the prompt has opened it.
    """
    if answers.has_channels:
        channel, message, end, start = (
            mark(tokenizer, text) for text in ("<|channel|>", "<|message|>", "<|end|>", "<|start|>")
        )
        analysis = f'{channel} "analysis" {message} thought {end} {start} "assistant"'
        return f"start: ({analysis})? body\nthought: /(.|\\n)*/\n{body}"
    closing = answers.unclosed(prompt)
    if closing is None:
        return f"start: body\n{body}"
    said = mark(tokenizer, closing)
    if said.startswith("<"):
        return f"start: thought {said} space body\nthought: /(.|\\n)*/\n{_SPACE}\n{body}"
    return f"start: thought space body\nthought[suffix={said}]: /(.|\\n)*/\n{_SPACE}\n{body}"


_SPACE = r"space: /[ \n]{0,3}/"


class Grammars:
    """Makes constraints for one model, whose answers any of `end_tokens` ends."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocabulary: int, end_tokens: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._end_tokens = list(end_tokens)

    @cached_property
    def _known(self) -> Any:
        """The tokenizer as llguidance knows it. Takes about a second with a large vocabulary."""
        try:
            from llguidance.hf import from_tokenizer
        except ImportError as error:
            raise MoeLocalError(_NO_LIBRARY, remedy="pip install 'moe-local[serve]'") from error
        ends = [token for token in self._end_tokens if token is not None]
        try:
            return from_tokenizer(self._tokenizer, n_vocab=self._vocabulary, eos_token=ends or None)
        except Exception as error:  # of tokenizers that are not fast ones
            raise UnsupportedError(f"this model's tokenizer cannot be held to a grammar ({error})") from error

    def bytes_of(self, token: int) -> bytes:
        """What a token stands for in the text, which may be a part of a character."""
        found: bytes = self._known.decode_bytes([token])
        return found

    def lark(self, text: str) -> Grammar:
        """Text of a Lark grammar, as llguidance writes them. Raises MoeLocalError for one that cannot be kept to."""
        from llguidance import LLMatcher, LLParserLimits

        limits = LLParserLimits(max_grammar_size=_SYMBOLS)
        first = LLMatcher(self._known, LLMatcher.grammar_from_lark(text), log_level=0, limits=limits)
        if first.is_error():
            reason = first.get_error().splitlines()[0].strip()
            raise MoeLocalError(f"an answer cannot be held to this schema ({reason})")
        return Grammar(first, self._vocabulary)


class Grammar:
    """A grammar that is understood once; `begin` follows an answer by it."""

    def __init__(self, first: Any, vocabulary: int) -> None:
        self._first = first
        self._vocabulary = vocabulary

    def begin(self) -> GrammarMatcher:
        """For an answer of which there is nothing yet."""
        return GrammarMatcher(self._first.deep_copy(), self._vocabulary)


class GrammarMatcher:
    """Follows one answer."""

    def __init__(self, matcher: Any, vocabulary: int) -> None:
        self._matcher = matcher
        self._bits = np.zeros(-(-vocabulary // _WORD), dtype=np.int32)
        self._vocabulary = vocabulary

    def mask(self, scores: Tensor) -> Tensor:
        """Scores [V] with -inf where a token may not follow. Raises MoeLocalError where nothing may."""
        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        if self._matcher.is_error():
            raise MoeLocalError(f"the answer cannot be held to its grammar ({self._matcher.get_error()})")
        barred = 1 - np.unpackbits(self._bits.view(np.uint8), bitorder="little")[: self._vocabulary]
        return scores.masked_fill(torch.from_numpy(barred).bool().to(scores.device), -torch.inf)

    def accept(self, token: int) -> None:
        """This token came."""
        if not self._matcher.is_stopped():
            self._matcher.consume_token(token)
