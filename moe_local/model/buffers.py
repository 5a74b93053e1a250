"""How large the buffers of a forward pass are: arithmetic that plans share with the model, without torch."""

from __future__ import annotations

_STEP = 64  # tokens: lengths of KV buffers are rounded up to it

_DECODED = 1 << 24  # numbers of a matrix that are decoded at a time, where its format can tell its rows apart
SCORES = 1 << 22  # scores of a block of attention at most: 4 bytes each, and a few copies


def columns(length: int) -> int:
    """Tokens that a KV buffer has room for when `length` are in it.

    A CPU's matrix library makes and keeps a program for every length it meets: so there are few of them.
    """
    return length + -length % max(_STEP, 1 << max(0, length.bit_length() - 4))


def rows_decoded(out: int, width: int) -> int:
    """Rows of a matrix [out, width] that are decoded at a time, where its format can tell them apart."""
    return min(out, max(16, _DECODED // width // 16 * 16))
