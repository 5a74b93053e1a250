"""What Triton kernels read of encoded matrices: words of the record, the numbers in a word, and their scales.

A matrix [out, in] is read in steps: each is a word of 32 bits that holds `pack` columns of a row, in a plain matrix
a number. `triton_matrix.Reader` says which parameters a format has. Importing this needs triton.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl


def jit(function: Any) -> Any:
    """triton.jit, whose types strict checking does not know; a `count` is no reason to compile again."""
    return triton.jit(function, do_not_specialize=["count"])


@jit
def step_words(
    data: tl.tensor,
    rows: tl.tensor,
    steps: tl.tensor,
    there: tl.tensor,
    pitch: tl.tensor,
    across: tl.tensor,
    spec: tl.constexpr,
) -> tl.tensor:
    """The words of rows [r] and steps [s] -> int32 [r, s]; the numbers in float32 if the matrix is plain.

    `there` [1, s] is which steps the matrix has.
    """
    kind: tl.constexpr = spec[0]
    if kind == "int4" or kind == "int8":
        block = (rows // 16).to(tl.int64) * (pitch * 16) + rows % 16
        if kind == "int4":
            each: tl.constexpr = spec[1] // 8
            places = (steps // each) * (each * 16 + 16) + (steps % each) * 16
        else:
            places = steps * 16
        words = tl.load(data.to(tl.pointer_type(tl.int32)) + block[:, None] + places[None, :], mask=there, other=0)
    elif kind == "bf16" or kind == "fp16" or kind == "fp32":
        at = (rows.to(tl.int64) * (pitch * spec[2]))[:, None] + (steps * across)[None, :]
        if kind == "bf16":
            half = tl.load(data.to(tl.pointer_type(tl.int16)) + at, mask=there, other=0)
            words = (half.to(tl.int32) << 16).to(tl.float32, bitcast=True)
        elif kind == "fp16":
            words = tl.load(data.to(tl.pointer_type(tl.float16)) + at, mask=there, other=0).to(tl.float32)
        else:
            words = tl.load(data.to(tl.pointer_type(tl.float32)) + at, mask=there, other=0)
    else:
        at = (rows.to(tl.int64) * (pitch * spec[2]))[:, None] + steps[None, :]
        words = tl.load(data.to(tl.pointer_type(tl.int32)) + at, mask=there, other=0)
    return words


@jit
def number(words: tl.tensor, place: tl.tensor, values: tl.tensor, kind: tl.constexpr) -> tl.tensor:
    """The numbers in float32 at a place of each word, 0 to pack - 1, before they are scaled.

    Small integers become the low bits of 2 ** 23, small floats the high bits of subnormal ones: conversions take
    many times as long.
    """
    if kind == "int4":
        code = (words >> (8 * (place % 4) + 4 * (place // 4))) & 15
        found = (code | 0x4B000000).to(tl.float32, bitcast=True) - 8388616.0
    elif kind == "int8":
        code = ((words >> (8 * place)) & 255) ^ 0x4B000080
        found = code.to(tl.float32, bitcast=True) - 8388736.0
    elif kind == "mxfp4" or kind == "nvfp4":
        found = (((words << (28 - 4 * place)) >> 6) & -0x7E400000).to(tl.float32, bitcast=True) * 8.507059173023462e37
    elif kind == "table":
        found = tl.load(values + ((words >> (8 * (place // 2) + 4 * (1 - place % 2))) & 15))
    elif kind == "fp8":
        found = e4m3(words << (24 - 8 * place))
    else:
        found = words
    return found


@jit
def e4m3(high: tl.tensor) -> tl.tensor:
    """8-bit floats in the high byte of int32 words -> float32."""
    found = ((high >> 4) & -0x78100000).to(tl.float32, bitcast=True) * 1.329227995784916e36
    return tl.where((high & 0x7F000000) == 0x7F000000, float("nan"), found)


@jit
def scale(
    data: tl.tensor, scales: tl.tensor, whole: tl.tensor, rows: tl.tensor, steps: tl.tensor, there: tl.tensor,
    pitch: tl.tensor, across: tl.tensor, spec: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """What the numbers of rows [r] and steps [s] are multiplied with -> float32 [r, s] or [r, 1]."""
    kind: tl.constexpr = spec[0]
    group: tl.constexpr = spec[1]
    if kind == "int4":
        found = _beside(data, rows, steps, there, pitch, group, 0)
    elif kind == "int8":
        at = (rows // 16).to(tl.int64) * (pitch * 16) + pitch * 16 - 16 + rows % 16
        found = tl.load(data.to(tl.pointer_type(tl.float32)) + at)[:, None]
    elif kind == "table":
        first = (rows.to(tl.int64) * (pitch * (spec[2] * 8)))[:, None]
        at = (first + (steps * 8)[None, :]) // group
        found = tl.load(scales.to(tl.pointer_type(tl.float32)) + at, mask=there, other=0)
    elif kind == "mxfp4":
        at = (rows.to(tl.int64) * across)[:, None] + (steps // 4)[None, :]
        exponent = tl.load(scales + at, mask=there, other=0).to(tl.int32)
        found = tl.where(exponent == 0, 0x400000, exponent << 23).to(tl.float32, bitcast=True)
    elif kind == "nvfp4":
        at = (rows.to(tl.int64) * across)[:, None] + (steps // 2)[None, :]
        found = e4m3(tl.load(scales + at, mask=there, other=0).to(tl.int32) << 24)
        found = _times_whole(found, whole, rows, spec[4])
    else:
        found = _of_blocks(scales, rows, steps, there, across, spec)
    return found


@jit
def offset(
    data: tl.tensor, rows: tl.tensor, steps: tl.tensor, there: tl.tensor, pitch: tl.tensor, group: tl.constexpr
) -> tl.tensor:
    """What is added to the scaled numbers of int4 -> float32 [r, s]."""
    return _beside(data, rows, steps, there, pitch, group, 16)


@jit
def _beside(
    data: tl.tensor,
    rows: tl.tensor,
    steps: tl.tensor,
    there: tl.tensor,
    pitch: tl.tensor,
    group: tl.constexpr,
    skip: tl.constexpr,
) -> tl.tensor:
    """The bf16 numbers behind the codes of int4's groups, scales or, skipping them, offsets."""
    each: tl.constexpr = group // 8
    block = (rows // 16).to(tl.int64) * (pitch * 32) + rows % 16
    places = (steps // each) * (each * 32 + 32) + (each * 32 + skip)
    half = tl.load(data.to(tl.pointer_type(tl.int16)) + block[:, None] + places[None, :], mask=there, other=0)
    return (half.to(tl.int32) << 16).to(tl.float32, bitcast=True)


@jit
def _times_whole(found: tl.tensor, whole: tl.tensor, rows: tl.tensor, how: tl.constexpr) -> tl.tensor:
    """By one number a row or one in all: multiplied by `rows` or `one`, or divided."""
    if how == "rows" or how == "rows_divide":
        by = tl.load(whole.to(tl.pointer_type(tl.float32)) + rows)[:, None]
    elif how == "one" or how == "one_divide":
        by = tl.load(whole.to(tl.pointer_type(tl.float32)))
    if how == "rows" or how == "one":
        found = found * by
    elif how == "rows_divide" or how == "one_divide":
        found = found / by
    return found


@jit
def _of_blocks(
    scales: tl.tensor, rows: tl.tensor, steps: tl.tensor, there: tl.tensor, across: tl.tensor, spec: tl.constexpr
) -> tl.tensor:
    """fp8's: one for so many rows and columns; `across` numbers lie in a line of them."""
    line = (rows // spec[3]) * across
    if spec[1] == 0:
        at = line[:, None]
        if spec[4] == "bf16":
            found = (tl.load(scales.to(tl.pointer_type(tl.int16)) + at).to(tl.int32) << 16).to(
                tl.float32, bitcast=True
            )
        else:
            found = tl.load(scales.to(tl.pointer_type(tl.float32)) + at)
    else:
        at = line[:, None] + (steps * 4 // spec[1])[None, :]
        if spec[4] == "bf16":
            half = tl.load(scales.to(tl.pointer_type(tl.int16)) + at, mask=there, other=0)
            found = (half.to(tl.int32) << 16).to(tl.float32, bitcast=True)
        else:
            found = tl.load(scales.to(tl.pointer_type(tl.float32)) + at, mask=there, other=0)
    return found
