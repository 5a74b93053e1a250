"""Sliding windows over a text that is longer than what a model sees at once.

As in https://huggingface.co/docs/transformers/perplexity: each window scores only the tokens that no window before
it has scored, so that all but the first window's have at least `window - stride` tokens before them.
"""

from __future__ import annotations

from dataclasses import dataclass

from moe_local.errors import MoeLocalError


@dataclass(frozen=True, slots=True)
class Window:
    """The model sees tokens `begin` to `end` of the text, and those from `scored` on count."""

    begin: int
    scored: int
    end: int

    @property
    def count(self) -> int:
        return self.end - self.scored


def windows(tokens: int, window: int, stride: int) -> list[Window]:
    """Windows over a text of `tokens`: every token but the first, which nothing predicts, is scored exactly once.

    Raises MoeLocalError where that cannot be.
    """
    if tokens < 2:
        raise MoeLocalError(f"a text of {tokens} tokens is too short to score", remedy="give at least 2")
    if window < 2:
        raise MoeLocalError(f"--window {window} is too small to score a token", remedy="give at least 2")
    if not 0 < stride < window:
        raise MoeLocalError(
            f"--stride {stride} is not at least 1 and less than the window of {window}",
            remedy=f"give {max(1, window // 2)}, half the window",
        )
    found = [Window(0, 1, min(window, tokens))]
    while (last := found[-1]).end < tokens:
        begin = last.begin + stride
        found.append(Window(begin, last.end, min(begin + window, tokens)))
    return found
