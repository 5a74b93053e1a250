"""How much of a long pass a layer's experts work on at once: arithmetic that plans share with them, without torch."""

from __future__ import annotations

ROWS_AT_ONCE = 4096  # of expert inputs, where experts are multiplied by one by one
TOKENS_AT_ONCE = 512  # whose experts' outputs are weighted and summed


def pass_bytes(tokens: int, top_k: int, hidden: int, inner: int, itemsize: int, *, one_by_one: bool) -> int:
    """Bytes that one layer's experts, of `inner` numbers between up and down, take in a pass of so many tokens.

    Each choice has its output, and in a GPU's kernels what came of up. Of as many as are multiplied `one_by_one`, or
    summed, at once: inputs, outputs and three rows in between; the weighted outputs in float32.
    """
    held = tokens * top_k * (hidden + inner) * itemsize
    if not one_by_one:
        return held
    rows = min(tokens * top_k, max(ROWS_AT_ONCE, tokens))
    summed = min(tokens, TOKENS_AT_ONCE) * top_k * hidden * 4
    return held + max(rows * (2 * hidden + 3 * inner) * itemsize, summed)
