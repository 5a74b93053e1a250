"""How large the buffers of a forward pass are: arithmetic that plans share with the model, without torch."""

from __future__ import annotations

_STEP = 64  # tokens: lengths of KV buffers are rounded up to it

SCORES = 1 << 22  # scores of a block of attention at most: 4 bytes each, and a few copies
LARGE = 1 << 26  # elements: a matrix of so many is not decoded for the sake of many rows


def columns(length: int) -> int:
    """Tokens that a KV buffer has room for when `length` are in it.

    A CPU's matrix library makes and keeps a program for every length it meets: so there are few of them.
    """
    return length + -length % max(_STEP, 1 << max(0, length.bit_length() - 4))
