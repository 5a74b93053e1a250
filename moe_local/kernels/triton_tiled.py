"""Triton kernels for many rows: tiles of an encoded matrix are decoded in registers and multiplied by tensor cores.

Rows of an expert lie one after another in `order`, places in the flattened choices [T, choices] sorted by expert. A
tile is (slot, first, last): rows first to last of `order`, at most `block` of them, of the expert in that slot; there
is nothing to do for a slot below 0. Importing this needs triton.
"""

from __future__ import annotations

import triton.language as tl

from moe_local.kernels.triton_readers import jit, number, offset, scale, step_words
from moe_local.kernels.triton_vector import activate, biased


@jit
def decoded(
    data: tl.tensor, scales: tl.tensor, whole: tl.tensor, values: tl.tensor, rows: tl.tensor, steps: tl.tensor,
    there: tl.tensor, pitch: tl.tensor, across: tl.tensor, spec: tl.constexpr, shape: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Rows [r] and steps [s] of a matrix, `shape` (r, s) -> float32 [r, s * pack]."""
    kind: tl.constexpr = spec[0]
    words = step_words(data, rows, steps, there, pitch, across, spec)
    if kind == "bf16" or kind == "fp16" or kind == "fp32":
        found = words
    else:
        by = scale(data, scales, whole, rows, steps, there, pitch, across, spec)
        places = tl.arange(0, spec[5])[None, None, :]
        numbers = number(words[:, :, None], places, values, kind) * by[:, :, None]
        if kind == "int4":
            numbers += offset(data, rows, steps, there, pitch, spec[1])[:, :, None]
        found = tl.reshape(numbers, [shape[0], shape[1] * spec[5]])
    return found


@jit
def multiplied(
    x: tl.tensor, starts: tl.tensor, here: tl.tensor, data: tl.tensor, scales: tl.tensor, whole: tl.tensor,
    values: tl.tensor, rows: tl.tensor, units: tl.tensor, pitch: tl.tensor, across: tl.tensor, spec: tl.constexpr,
    tile: tl.constexpr, even: tl.constexpr, exact: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Rows of x that begin at `starts` [block], where `here`, by rows [r] of a matrix -> float32 [block, r].

    `tile` is (block, r, steps). Numbers are decoded to x's type, or with `exact` multiplied in float32.
    """
    pack: tl.constexpr = spec[5]
    total = units * spec[2]
    sums = tl.zeros([tile[0], tile[1]], tl.float32)
    for start in range(0, total, tile[2]):
        steps = start + tl.arange(0, tile[2])
        there = (steps < total)[None, :] | even
        columns = start * pack + tl.arange(0, tile[2] * pack)
        inside = here[:, None] & ((columns < total * pack)[None, :] | even)
        left = tl.load(x + starts[:, None] + columns[None, :], mask=inside, other=0)
        right = decoded(
            data, scales, whole, values, rows, steps, there, pitch, across, spec, (tile[1], tile[2])
        )  # fmt: skip
        if exact:
            sums = tl.dot(left.to(tl.float32), tl.trans(right), sums, input_precision="ieee")
        else:
            sums = tl.dot(left, tl.trans(right.to(left.dtype)), sums)
    return sums


@jit
def up_tiled(
    x: tl.tensor, order: tl.tensor, tiles: tl.tensor, slab: tl.tensor, out: tl.tensor, values: tl.tensor,
    slot_size: tl.tensor, choices: tl.tensor, width: tl.tensor, inner: tl.tensor, data: tl.tensor, scales: tl.tensor,
    whole: tl.tensor, up_data: tl.tensor, up_scales: tl.tensor, up_whole: tl.tensor, up_row: tl.tensor,
    bias: tl.tensor, units: tl.tensor, pitch: tl.tensor, across: tl.tensor, alpha: tl.tensor, limit: tl.tensor,
    spec: tl.constexpr, tile: tl.constexpr, even: tl.constexpr, fits: tl.constexpr, gating: tl.constexpr,
    bias_kind: tl.constexpr, exact: tl.constexpr,
) -> None:  # fmt: skip
    """x [T, width] -> out [T * choices, inner] in the order of the experts; see `triton_vector.up_vector`."""
    slot = tl.load(tiles + 3 * tl.program_id(1))
    if slot >= 0:
        record = slab + slot.to(tl.int64) * slot_size
        places = tl.load(tiles + 3 * tl.program_id(1) + 1) + tl.arange(0, tile[0])
        here = places < tl.load(tiles + 3 * tl.program_id(1) + 2)
        starts = (tl.load(order + places, mask=here, other=0) // choices) * width
        first = tl.program_id(0) * tile[1]
        rows = first + tl.arange(0, tile[1])
        if gating[2]:
            read = rows if fits else tl.minimum(rows, 2 * inner - 1)
            both = multiplied(
                x, starts, here, record + data, record + scales, record + whole, values, read, units, pitch, across,
                spec, tile, even, exact,
            )  # fmt: skip
            both = biased(both, record, bias, read[None, :], bias_kind)
            gate, up = tl.split(tl.reshape(both, [tile[0], tile[1] // 2, 2]))
            outputs = first // 2 + tl.arange(0, tile[1] // 2)
        else:
            read = rows if fits else tl.minimum(rows, inner - 1)
            gate = multiplied(
                x, starts, here, record + data, record + scales, record + whole, values, read, units, pitch, across,
                spec, tile, even, exact,
            )  # fmt: skip
            gate = biased(gate, record, bias, read[None, :], bias_kind)
            up = gate
            if gating[1]:
                up = multiplied(
                    x, starts, here, record + up_data, record + up_scales, record + up_whole, values, read + up_row,
                    units, pitch, across, spec, tile, even, exact,
                )  # fmt: skip
                up = biased(up, record, bias, (read + inner)[None, :], bias_kind)
            outputs = rows
        found = activate(gate, up, alpha, limit, gating[0], gating[1]).to(out.dtype.element_ty)
        at = places.to(tl.int64)[:, None] * inner + outputs[None, :]
        tl.store(out + at, found, mask=here[:, None] & (outputs < inner)[None, :])


@jit
def down_tiled(
    x: tl.tensor, order: tl.tensor, tiles: tl.tensor, slab: tl.tensor, out: tl.tensor, values: tl.tensor,
    slot_size: tl.tensor, width: tl.tensor, outputs: tl.tensor, data: tl.tensor, scales: tl.tensor, whole: tl.tensor,
    bias: tl.tensor, units: tl.tensor, pitch: tl.tensor, across: tl.tensor, spec: tl.constexpr, tile: tl.constexpr,
    even: tl.constexpr, fits: tl.constexpr, bias_kind: tl.constexpr, exact: tl.constexpr,
) -> None:  # fmt: skip
    """x [T * choices, width] in the order of the experts -> out [T * choices, outputs] in that of the choices."""
    slot = tl.load(tiles + 3 * tl.program_id(1))
    if slot >= 0:
        record = slab + slot.to(tl.int64) * slot_size
        places = tl.load(tiles + 3 * tl.program_id(1) + 1) + tl.arange(0, tile[0])
        here = places < tl.load(tiles + 3 * tl.program_id(1) + 2)
        rows = tl.program_id(0) * tile[1] + tl.arange(0, tile[1])
        read = rows if fits else tl.minimum(rows, outputs - 1)
        found = multiplied(
            x, places.to(tl.int64) * width, here, record + data, record + scales, record + whole, values, read,
            units, pitch, across, spec, tile, even, exact,
        )  # fmt: skip
        found = biased(found, record, bias, read[None, :], bias_kind).to(out.dtype.element_ty)
        at = tl.load(order + places, mask=here, other=0)[:, None] * outputs + rows[None, :]
        tl.store(out + at, found, mask=here[:, None] & (rows < outputs)[None, :])


@jit
def dense_tiled(
    x: tl.tensor, data: tl.tensor, scales: tl.tensor, whole: tl.tensor, out: tl.tensor, values: tl.tensor,
    count: tl.tensor, width: tl.tensor, outputs: tl.tensor, units: tl.tensor, pitch: tl.tensor, across: tl.tensor,
    spec: tl.constexpr, tile: tl.constexpr, even: tl.constexpr, fits: tl.constexpr, exact: tl.constexpr,
) -> None:  # fmt: skip
    """x [count, width] -> out [count, outputs], by one matrix."""
    places = (tl.program_id(1) * tile[0] + tl.arange(0, tile[0])).to(tl.int64)
    here = places < count
    rows = tl.program_id(0) * tile[1] + tl.arange(0, tile[1])
    read = rows if fits else tl.minimum(rows, outputs - 1)
    found = multiplied(
        x, places * width, here, data, scales, whole, values, read, units, pitch, across, spec, tile, even, exact
    )
    at = places[:, None] * outputs + rows[None, :]
    tl.store(out + at, found.to(out.dtype.element_ty), mask=here[:, None] & (rows < outputs)[None, :])
