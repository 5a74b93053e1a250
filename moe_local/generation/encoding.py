"""Text into tokens, without making tokens of text that the context could not hold anyway."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from moe_local.errors import MoeLocalError

_PIECE = 1 << 16  # characters of a text that are turned into tokens at once, where not all may be needed
_UNSURE = 64  # tokens at the end of a piece, that what follows might change


class TooLongError(MoeLocalError):
    """A text of more tokens than the context holds."""


class PromptEncoder:
    """A tokenizer that looks at no more of a text than a context of `context` tokens takes."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, context: int) -> None:
        self._tokenizer = tokenizer
        self._context = context

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of a prompt, `special` with the tokens that the tokenizer puts around one.

        A long text is taken in pieces first: TooLongError for one that the context cannot hold comes before all of
        it is tokens. MoeLocalError for text that is not Unicode.
        """
        if len(text) > _PIECE:
            self._assert_short(text)
        return self._tokens(text, special=special)

    def encode_text(self, text: str, most: int | None = None) -> list[int]:
        """Token ids of a text to be read, or the first `most` of them, for which no more of it is looked at."""
        if most is None:
            return self._tokens(text)
        part = most * 8 + _PIECE
        while len(ids := self._tokens(text[:part])) < most + _UNSURE and part < len(text):
            part *= 2
        return ids[:most]

    def _tokens(self, text: str, *, special: bool = True) -> list[int]:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise MoeLocalError(
                f"the text is not Unicode: it has a lone surrogate at character {error.start}",
                remedy="give it as UTF-8",
            ) from error
        ids: list[int] = self._tokenizer(text, add_special_tokens=special)["input_ids"]
        return ids

    def _assert_short(self, text: str) -> None:
        """Raises TooLongError for a text of more tokens than the context holds, as soon as that is certain."""
        tokens = 0
        for begin in range(0, len(text), _PIECE):
            tokens += max(0, len(self._tokens(text[begin : begin + _PIECE], special=False)) - _UNSURE)
            if tokens > self._context:
                raise TooLongError(
                    f"the prompt has more than {tokens} tokens and the context holds {self._context}",
                    remedy="shorten it, or give a larger --context",
                )
