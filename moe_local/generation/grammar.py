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

_NO_LIBRARY = "answers that keep to a grammar need llguidance"
_WORD = 32  # bits


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

    def json(self, schema: Mapping[str, Any] | bool) -> Grammar:
        """JSON of a schema. Raises MoeLocalError for one that cannot be kept to, naming what of it."""
        from llguidance import LLMatcher

        try:
            grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides={"whitespace_flexible": False})
        except Exception as error:
            raise MoeLocalError(f"the schema cannot be kept to ({error})") from error
        return self._made(grammar, "schema")

    def lark(self, text: str) -> Grammar:
        """Text of a Lark grammar, as llguidance writes them. Raises MoeLocalError for one that is none."""
        from llguidance import LLMatcher

        return self._made(LLMatcher.grammar_from_lark(text), "grammar")

    def _made(self, grammar: str, what: str) -> Grammar:
        from llguidance import LLMatcher

        first = LLMatcher(self._known, grammar, log_level=0)
        if first.is_error():
            raise MoeLocalError(f"the {what} cannot be kept to ({' '.join(first.get_error().split())})")
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
